"""Rows: read, mapped, held out, limited, hashed; every bad input located."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from small import sentences, write_lines

from surgery.errors import DataError
from surgery.registry import DataSource, Registry, hookimpl, load_registry
from surgery.spec import DataSpec
from surgery.training.data import load_data
from surgery.training.readers import read_table
from surgery.training.splits import held_out, limited
from surgery.training.table import Table

COLUMNS = {"text": "text", "text_pair": "", "label": "label"}
EMPTY = load_registry(entry_points=False)


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_table(path)
    return caught.value


def table(rows: list[dict[str, Any]]) -> Table:
    return Table(rows, "train", range(1, len(rows) + 1), "row ")


def test_three_formats_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": 'a, "quoted"\nline\u2028x', "label": "1"}, {"text": "ü", "label": "0"}]
    write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    csv_text = 'text,label\n"a, ""quoted""\nline\u2028x",1\nü,0\n'
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbf" + csv_text.encode())
    tables = [read_table(tmp_path / name) for name in ("a.jsonl", "b.json", "c.csv")]
    assert [dict(row) for row in tables[0]] == rows
    assert len({found.digest() for found in tables}) == 1
    assert tables[0].where(1).endswith("a.jsonl:2")
    assert tables[1].where(1).endswith("b.json:row 2")
    assert tables[2].where(1).endswith("c.csv:4")


def test_a_long_csv_field_is_no_error_and_the_limit_is_put_back(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("text,label\n" + "x" * 300_000 + ",1\n", encoding="utf-8")
    assert len(read_table(tmp_path / "a.csv")[0]["text"]) == 300_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "what", "place"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', "not JSON: expecting value", ":3:10"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "a row must be an object, not a list", ":2"),
        ("a.jsonl", b"", "the file holds no rows", ""),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "the byte 0xff is not UTF-8", ":2"),
        ("a.json", b'{"text": "x"}', "the file must hold a list of objects, not one object", ""),
        ("a.json", b'[{"text": "x"},\n 3]', "a row must be an object, not a number", ":row 2"),
        ("a.json", b"[" * 100_000, "not JSON that can be read", ":1"),
        ("a.json", b"[]", "the file holds no rows", ""),
        ("a.csv", b"", "the file holds no rows", ""),
        ("a.csv", b"text,label\n", "the file holds no rows", ""),
        ("a.csv", b"text,text\na,b\n", "two columns are called 'text'", ":1"),
        ("a.csv", b"text,label\na,b\n\nc\n", "the row has 1 fields, the header 2", ":4"),
        ("a.csv", b'text,label\n"a,b\n', "malformed CSV: unexpected end of data", ":2"),
        ("a.parquet", b"PAR1", "cannot tell the format of 'a.parquet'", ""),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, what: str, place: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = refused(path)
    assert error.what.startswith(what)
    assert error.where == f"{path}{place}"


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"text": "a"}])
    error = refused(tmp_path / "trian.jsonl")
    assert (error.what, error.hint) == ("no such file", "did you mean 'train.jsonl'?")
    (tmp_path / "spec.yaml").write_text("version: 1")
    assert refused(tmp_path / "other.csv").hint == "known: train.jsonl"


def test_an_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    assert refused(tmp_path / "a.jsonl").what == "the file cannot be read: Is a directory"


def test_a_missing_column_says_what_there_is() -> None:
    rows = [{"sentence": "a", "labels": 1}]
    with pytest.raises(DataError) as caught:
        load_data(None, COLUMNS, EMPTY, override={"train": rows})
    assert [problem.what for problem in caught.value.problems] == [
        "there is no column 'text'",
        "there is no column 'label'",
    ]
    assert caught.value.problems[0].hint == "known: labels, sentence; map it in the spec: data: {columns: {text: NAME}}"
    assert caught.value.problems[1].hint.startswith("did you mean 'labels'?")


def test_a_row_without_the_column_is_located(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": 1}, {"text": "b"}])
    with pytest.raises(DataError) as caught:
        load_data(DataSpec(train=str(path)), COLUMNS, EMPTY)
    assert (caught.value.what, caught.value.where) == ("the row has no 'label'", f"{path}:2")


def test_a_column_that_the_task_does_not_know() -> None:
    with pytest.raises(DataError) as caught:
        load_data(DataSpec(columns={"txt": "a"}), COLUMNS, EMPTY, override={"train": sentences(3)})
    assert (caught.value.what, caught.value.where) == ("the task has no column 'txt'", "data.columns.txt")
    assert caught.value.hint.startswith("did you mean 'text'")


def test_columns_are_renamed_and_others_left_out() -> None:
    rows = [{"s1": f"a{index}", "s2": "b", "y": index % 2, "id": index} for index in range(30)]
    spec = DataSpec(columns={"text": "s1", "text_pair": "s2", "label": "y"})
    loaded = load_data(spec, COLUMNS, EMPTY, override={"train": rows, "validation": rows})
    assert loaded.splits["train"][3] == {"text": "a3", "text_pair": "b", "label": 1}


def test_validation_is_held_out_by_the_text() -> None:
    rows = [{"text": f"text {index % 200}", "label": index} for index in range(400)]
    loaded = load_data(None, COLUMNS, EMPTY, override={"train": rows})
    train, validation = loaded.splits["train"], loaded.splits["validation"]
    assert len(train) + len(validation) == 400
    assert 0.05 < len(validation) / 400 < 0.15
    assert not {row["text"] for row in train} & {row["text"] for row in validation}
    assert loaded.notes == (
        f"no validation split: {len(validation)} of 400 training rows ({len(validation) / 4:.1f} %) are held out by a "
        "hash of their text",
    )
    few = load_data(None, COLUMNS, EMPTY, override={"train": rows}, limit={"train": 60, "validation": 20})
    assert few.notes == ("no validation split: 20 of 80 training rows (25.0 %) are held out by a hash of their text",)
    # Rows keep their side when others are added.
    more = load_data(None, COLUMNS, EMPTY, override={"train": [*rows, {"text": "new", "label": 0}]})
    assert {row["text"] for row in validation} <= {row["text"] for row in more.splits["validation"]}


def test_tiny_data_still_has_a_validation_row() -> None:
    rest, validation = held_out(table([{"text": "a"}, {"text": "b"}]), "text")
    assert (len(rest), len(validation)) == (1, 1)
    with pytest.raises(DataError, match="all training rows hold the same text"):
        held_out(table([{"text": "a"}, {"text": "a"}]), "text")


def test_limits_are_nested_and_keep_the_order() -> None:
    rows = table([{"text": str(index)} for index in range(100)])
    ten = [row["text"] for row in limited(rows, "train", 10)]
    twenty = [row["text"] for row in limited(rows, "train", 20)]
    assert len(ten) == 10
    assert set(ten) < set(twenty)
    assert ten == sorted(ten, key=int)
    assert ten != [str(index) for index in range(10)]
    assert limited(rows, "train", 1000) is rows


def test_the_hash_is_of_the_content() -> None:
    first = load_data(None, COLUMNS, EMPTY, override={"train": sentences(20), "validation": sentences(5)})
    again = load_data(None, COLUMNS, EMPTY, override={"train": sentences(20), "validation": sentences(5)})
    other = load_data(None, COLUMNS, EMPTY, override={"train": sentences(21), "validation": sentences(5)})
    assert first.hashes == again.hashes
    assert first.hashes["train"] != other.hashes["train"]
    assert first.hashes["validation"] == other.hashes["validation"]


def test_a_folder_is_searched_for_its_splits(tmp_path: Path) -> None:
    write_lines(tmp_path / "train_10k.jsonl", sentences(5))
    write_lines(tmp_path / "dev.jsonl", sentences(4))
    write_lines(tmp_path / "test.json.bak", sentences(4))
    loaded = load_data(None, COLUMNS, EMPTY, override=tmp_path)
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {"train": 5, "validation": 4}
    write_lines(tmp_path / "valid.jsonl", sentences(4))
    with pytest.raises(DataError, match="several files could be the validation split: dev.jsonl, valid.jsonl"):
        load_data(None, COLUMNS, EMPTY, override=tmp_path)


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "books.jsonl", sentences(30))
    loaded = load_data(None, COLUMNS, EMPTY, override=str(tmp_path))
    assert sum(len(rows) for rows in loaded.splits.values()) == 30


def test_a_folder_without_training_rows(tmp_path: Path) -> None:
    write_lines(tmp_path / "dev.jsonl", sentences(4))
    with pytest.raises(DataError, match="no training file among: dev.jsonl"):
        load_data(None, COLUMNS, EMPTY, override=tmp_path)


class Corpus(DataSource):
    name = "toy:corpus"
    summary = "for tests"

    def load(self) -> dict[str, list[dict[str, Any]]]:
        return {"train": sentences(20), "held": sentences(5), "test": sentences(4)}


class Plugin:
    @hookimpl
    def surgery_datasets(self) -> list[DataSource]:
        return [Corpus()]


def registry_with_corpus() -> Registry:
    return load_registry(extra=[Plugin()], entry_points=False)


def test_a_plugin_data_set() -> None:
    spec = DataSpec(name="toy:corpus", validation="held", limit={"train": 7})
    loaded = load_data(spec, COLUMNS, registry_with_corpus())
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {"train": 7, "validation": 5, "test": 4}
    assert loaded.splits["test"].where(0) == "toy:corpus[test]:row 1"
    with pytest.raises(DataError) as caught:
        load_data(DataSpec(name="toy:corpus", test="tset"), COLUMNS, registry_with_corpus())
    assert (caught.value.what, caught.value.hint) == ("the data set has no split 'tset'", "did you mean 'test'?")


def test_no_data_at_all() -> None:
    with pytest.raises(DataError, match="there is no training data"):
        load_data(None, COLUMNS, EMPTY)


def test_a_hub_data_set_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'glue' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError) as caught:
        load_data(DataSpec(name="glue", config="sst2"), COLUMNS, EMPTY)
    assert caught.value.what == (
        "the data set cannot be loaded; this process is offline: Couldn't reach 'glue' on the Hub (OfflineModeIsEnabled)"
    )
    assert caught.value.where == "glue"
    assert "--data FOLDER" in caught.value.hint


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def split(count: int) -> Any:
        return datasets.Dataset.from_list([{"idx": 1, **row} for row in sentences(count)])

    loaded_splits = datasets.DatasetDict(train=split(30), validation=split(5), test=split(4))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded_splits)
    loaded = load_data(DataSpec(name="some/set", limit={"train": 10}), COLUMNS, EMPTY)
    # Test splits of the hub are often without labels: only one that is asked for is read.
    assert {name: len(rows) for name, rows in loaded.splits.items()} == {"train": 10, "validation": 5}
    same = load_data(
        None, COLUMNS, EMPTY, override={"train": sentences(30), "validation": sentences(5)}, limit={"train": 10}
    )
    assert loaded.hashes == same.hashes
    # A split is never both what chooses and what is reported.
    held = load_data(DataSpec(name="some/set", test="validation"), COLUMNS, EMPTY)
    assert held.hashes["test"] == loaded.hashes["validation"]
    assert len(held.splits["train"]) + len(held.splits["validation"]) == 30
    with pytest.raises(DataError, match="the data set has no split 'unsupervised'"):
        load_data(DataSpec(name="some/set", test="unsupervised"), COLUMNS, EMPTY)


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_forbidden_file(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", sentences(2))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert refused(path).what == "the file cannot be read: Permission denied"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert refused(tmp_path / name).what == "it is no regular file"


def test_half_a_character_is_located(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00 \\\\ud83d"}\n{"text": ["x", {"y": "\\uDC00 a"}]}\n')
    error = refused(path)
    assert (error.what, error.where) == ("\\udc00 is half a character", f"{path}:2")
    path = tmp_path / "b.json"
    path.write_text('[{"text": "a"}, {"\\ud800": "b"}]')
    error = refused(path)
    assert (error.what, error.where) == ("\\ud800 is half a character", f"{path}:row 2")
    path.write_text('[{"text": "\\ud83d\\ude00"}]')
    assert read_table(path)[0] == {"text": "\U0001f600"}
