"""The text collections are disjoint by file, the same in every process, and robust to what they meet on a machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from surgery_demo import corpora, sources
from surgery_demo.chapters import CHAPTERS, chapter_of

COLLECTIONS: list[Callable[..., corpora.Splits]] = [
    corpora.stdlib_docstrings,
    corpora.torch_docstrings,
    corpora.stdlib_text,
]
PLUGINS = Path(corpora.__file__).resolve().parents[1]

_DIGEST = """
import hashlib, json, sys
from surgery_demo import corpora
rows = [getattr(corpora, name)(seed=3) for name in ("stdlib_docstrings", "torch_docstrings", "stdlib_text")]
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest(), "torch" in sys.modules)
"""


def _texts(rows: list[dict[str, str]]) -> set[str]:
    return {row["text"] for row in rows}


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_no_text_is_in_two_splits(collection: Callable[..., corpora.Splits]) -> None:
    splits = collection(train=10**6, validation=10**6, test=10**6)
    assert list(splits) == ["train", "validation", "test"]
    assert all(splits.values())
    train, validation, test = (_texts(rows) for rows in splits.values())
    # Two unrelated files may begin with the same licence text; whole docstrings never repeat.
    allowed = 2 if collection is corpora.stdlib_text else 0
    assert len(train & validation) + len(train & test) + len(validation & test) <= allowed


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_the_seed_draws_other_rows_from_the_same_splits(collection: Callable[..., corpora.Splits]) -> None:
    everything = collection(train=10**6, validation=10**6, test=10**6)
    first, second = collection(seed=1, train=50, test=40), collection(seed=2, train=50, test=40)
    assert first == collection(seed=1, train=50, test=40)
    assert first["train"] != second["train"]
    for drawn in (first, second):
        assert len(drawn["train"]) == 50
        assert all(_texts(drawn[split]) <= _texts(everything[split]) for split in drawn)


def test_rows_are_the_same_in_another_process_whatever_its_hash_seed() -> None:
    def run(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(PLUGINS)}
        command = [sys.executable, "-c", _DIGEST]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    first = run("1")
    assert first == run("2")
    assert first.split()[1] == "False", "reading text must not import torch"


def test_labels_are_balanced_and_known() -> None:
    splits = corpora.stdlib_docstrings()
    assert len(splits["train"]) >= 1500
    assert 400 <= len(splits["test"]) <= 600
    for rows in splits.values():
        counts = Counter(row["label"] for row in rows)
        assert set(counts) == set(CHAPTERS)
        assert max(counts.values()) <= 0.25 * len(rows)


def test_no_text_has_two_labels() -> None:
    splits = corpora.stdlib_docstrings(train=10**6, validation=10**6, test=10**6)
    keys = [row["text"].casefold() for rows in splits.values() for row in rows]
    assert len(keys) == len(set(keys))
    assert min(map(len, keys)) >= 40


def test_files_go_whole_to_one_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each made-up file signs its docstrings, so a signature in two splits would be a file in two splits."""
    files = []
    for number in range(60):
        name = f"email/part{number}.py" if number % 2 else f"tkinter/part{number}.py"
        path = tmp_path / f"{number}.py"
        functions = [
            f'def f{i}():\n    """Function {i} does what file{number}x says it should do."""\n' for i in range(8)
        ]
        path.write_text("\n".join(functions), encoding="utf-8")
        files.append(sources.SourceFile(name, path))
    monkeypatch.setattr(corpora, "stdlib_files", lambda: files)
    monkeypatch.setattr(corpora, "package_files", lambda *_: files)
    monkeypatch.setattr(corpora, "docstrings", lambda text: (t * 3 for t in sources.docstrings(text)))
    monkeypatch.setattr(corpora, "first_paragraph", lambda text: text)
    _forget()
    try:
        for collection in COLLECTIONS[:2]:
            splits = collection(train=10**6, validation=10**6, test=10**6)
            signed = [{row["text"].split("file")[1].split("x")[0] for row in rows} for rows in splits.values()]
            assert sum(map(len, signed)) == len(set.union(*signed)) == 60
    finally:
        _forget()


def _forget() -> None:
    for pool in (corpora._labelled_pools, corpora._torch_pools, corpora._stdlib_pools):
        pool.cache_clear()


def test_a_module_that_becomes_a_package_keeps_its_split() -> None:
    assert corpora.stdlib_text_split("datetime.py") == corpora.stdlib_text_split("_pydatetime.py") == "test"
    assert corpora.stdlib_text_split("pathlib.py") == corpora.stdlib_text_split("pathlib/_local.py") == "validation"
    assert corpora.stdlib_text_split("argparse.py") == "train"


def test_pieces_join_to_the_text_and_keep_to_the_bound() -> None:
    text = "a line of text\n" * 50 + "x" * 300 + "\nend"
    pieces = corpora._pieces(text, 100)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 100


@pytest.mark.parametrize("content", [b"\xff\xfe not utf-8", b"def broken(:\n", b"", b"\0\0"])
def test_unreadable_files_give_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.py"
    path.write_bytes(content)
    file = sources.SourceFile("odd.py", path)
    assert list(sources.docstrings(file.read())) == []
    assert sources.SourceFile("gone.py", tmp_path / "gone.py").read() == ""


def test_an_absent_package_gives_no_files() -> None:
    assert sources.package_files("no_such_package_anywhere", ("nn",)) == []


def test_chapters_follow_the_top_level_module() -> None:
    assert chapter_of("email/mime/text.py") == "internet and mail"
    assert chapter_of("this.py") is None


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="train=-1"):
        corpora.stdlib_text(train=-1)


def test_reading_is_fast() -> None:
    _forget()
    started = time.process_time()
    for collection in COLLECTIONS:
        collection()
    assert time.process_time() - started < 15
    json.dumps(corpora.stdlib_docstrings())


def test_pairs_have_one_right_passage_each() -> None:
    from surgery_demo.pairs import torch_pairs

    splits = torch_pairs()
    assert list(splits) == ["test"]
    rows = splits["test"]
    assert len(rows) == 200
    for side in ("query", "passage"):
        assert len({row[side].casefold() for row in rows}) == 200
    assert not {row["query"] for row in rows} & {row["passage"] for row in rows}
    assert torch_pairs(test=20)["test"] == rows[:20]
    assert torch_pairs(seed=1)["test"] != rows
    with pytest.raises(ValueError, match="must not be negative"):
        torch_pairs(test=-1)
