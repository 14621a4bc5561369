"""What is wrong with a study or its folder is told in words that say what to do, and nothing is lost.

SURGERY_REGENERATE_GOLDEN=1 rewrites golden/bad-*.txt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stub import Stub, text_registry
from synthetic import make_study
from test_adversarial import pinned
from tiny_studies import bert_study

from surgery.engine.scheduler import InProcess
from surgery.errors import StateError, SurgeryError
from surgery.registry import Registry
from surgery.report import build_report
from surgery.study import Comparison, StudySpec, compare, read_comparison
from surgery.study.results import RESULTS, Results

FULL = {"rules": [{"role": ".*", "adapter": "full"}], "learning_rate": 3e-3}


def run(folder: Path, study: StudySpec | None = None) -> Comparison:
    stub = Stub(folder.parent / "log")
    with stub.installed():
        return compare(study or make_study(3), folder, registry=text_registry(), engine=InProcess())


def refused(name: str, folder: Path, study: StudySpec | None = None) -> None:
    """Assert that the study is refused in the golden words, and that not a byte of the folder changes."""
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(SurgeryError) as caught:
        run(folder, study)
    text = re.sub(r"\b[0-9a-f]{8,}\b", "<hash>", str(caught.value).replace(str(folder), "DIR"))
    pinned(f"bad-{name}", f"{text}\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.fixture
def done(tmp_path: Path) -> Path:
    return run(tmp_path / "study").folder


def test_a_torn_last_line_is_dropped_run_again_and_told(done: Path) -> None:
    path = done / RESULTS
    whole = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    path.write_bytes(path.read_bytes()[:-40])
    comparison = run(done)
    pinned("bad-torn-line", f"{comparison.note}\n")
    assert [record["key"] for record in comparison.records] == [record["key"] for record in whole]


def test_a_damaged_line_in_the_middle(done: Path) -> None:
    path = done / RESULTS
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[3][:100] + "\n", *lines[4:]]), encoding="utf-8")
    refused("damaged-line", done)


def changed(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "lora") -> int:
    """Change the last final record of an arm; return its line."""
    path = folder / RESULTS
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    number = max(index for index, record in enumerate(records) if (record["arm"], record["phase"]) == (name, "final"))
    change(records[number])
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return number + 1


def both_refuse(folder: Path, pattern: str) -> None:
    """Assert that neither comparing again nor reading takes the folder, and that not a byte of it changes."""
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for act in (run, read_comparison):
        with pytest.raises(StateError, match=pattern) as caught:
            act(folder)
        assert caught.value.hint
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record["test"].update(accuracy=float("nan")), "is not a result"),
        (lambda record: record["curve"][0].update(train_loss=float("inf")), "is not a result"),
        (lambda record: record.pop("hashes"), "hashes: field required"),
        (lambda record: record["hashes"].update(base={"a": 1}), r"hashes\.base: input should be a valid string"),
        (lambda record: record.update(diverged="no"), "diverged: input should be a valid boolean"),
        (lambda record: record.update(seed=True), "seed: input should be a valid integer"),
        (lambda record: record["items"].update(label=[1, 2]), "items: the arrays differ in length"),
        (lambda record: record.update(test=None), "items: a final run has a test score"),
        (lambda record: record.update(phase="other"), "phase: should be tune or final"),
    ],
    ids=["nan", "inf", "no-hashes", "dict-as-hash", "word-as-bool", "bool-as-seed", "short", "no-test", "phase"],
)
def test_a_line_that_is_no_record(done: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    number = changed(done, change)
    both_refuse(done, f"{RESULTS}:{number}: this line.*{said}")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, '{"key": "a", "seed": 1e999}'], ids=len)
def test_a_line_that_no_reader_gets_through(done: Path, text: str) -> None:
    path = done / RESULTS
    path.write_text(f"{text}\n{path.read_text('utf-8')}", encoding="utf-8")
    both_refuse(done, f"{RESULTS}:1: this line is not a result")


def test_a_score_that_its_own_items_contradict(done: Path) -> None:
    changed(done, lambda record: record["test"].update(accuracy=0.99))
    with pytest.raises(StateError, match=r"lora, seed 3: the record says accuracy 0\.99, and its test items give"):
        run(done)


def test_a_record_without_the_keys_that_came_later(done: Path) -> None:
    changed(done, lambda record: [record.pop(key, None) for key in ("cost", "weights", "conditions")])
    assert run(done).summary.rows


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: told.update(rows=[]), "its rows, seeds, margin or reference"),
        (lambda told: told.update(reference="nobody"), "its rows, seeds, margin or reference"),
        (lambda told: told.update(seeds=[]), "its rows, seeds, margin or reference"),
        (lambda told: told["rows"][1].update(arm="zzz"), "its rows, seeds, margin or reference"),
        (lambda told: told["rows"].append(told["rows"][1]), "its rows, seeds, margin or reference"),
        (lambda told: told["rows"][1].update(kind="reference"), "its reference is not"),
        (lambda told: told.update(margin=float("nan")), "cannot be read: NaN is no finite number"),
        (lambda told: told.update(results="0" * 64), "results.jsonl was changed after"),
    ],
    ids=["no-rows", "no-reference", "no-seeds", "stranger", "twice", "two-references", "nan", "other-results"],
)
def test_a_summary_that_is_not_of_these_results(
    done: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    path = done / "summary.json"
    told = json.loads(path.read_text("utf-8"))
    change(told)
    path.write_text(json.dumps(told), encoding="utf-8")
    before = {each: each.read_bytes() for each in done.rglob("*") if each.is_file()}
    with pytest.raises(StateError, match=said):
        build_report(done)
    assert {each: each.read_bytes() for each in done.rglob("*") if each.is_file()} == before
    run(done)
    build_report(done)


def test_results_that_changed_after_the_summary(done: Path) -> None:
    changed(done, lambda record: record["validation"].update(loss=9.9))
    with pytest.raises(StateError, match="was changed after it was written"):
        build_report(done)
    told = json.loads((done / "summary.json").read_text("utf-8"))
    del told["results"]  # as an earlier version wrote it
    (done / "summary.json").write_text(json.dumps(told), encoding="utf-8")
    build_report(done)


@pytest.mark.parametrize("name", ["study.json", "summary.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "\udcff"], ids=["deep", "list", "bytes"])
def test_a_file_that_no_reader_gets_through(done: Path, name: str, text: str) -> None:
    (done / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(StateError, match="cannot be read"):
        build_report(done)


def test_another_study_in_the_folder(done: Path) -> None:
    refused("another-study", done, make_study(3, margin=0.02))


def test_a_line_of_another_study(done: Path, tmp_path: Path) -> None:
    other = run(tmp_path / "other", make_study(3, training={"steps": 120, "batch_size": 16}))
    line = (other.folder / RESULTS).read_text("utf-8").splitlines(keepends=True)[4]
    with (done / RESULTS).open("a") as file:
        file.write(line)
    refused("line-of-another-study", done)


def test_a_folder_in_use(done: Path) -> None:
    identity = json.loads((done / "study.json").read_text("utf-8"))
    with Results.opened(done, identity):
        refused("in-use", done)


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("matches-nothing", [{"role": "attention.qeury", "adapter": "lora", "rank": 2}]),
        ("all-taken-by-the-head", [{"role": r"head\.classifier", "adapter": "lora", "rank": 2}]),
    ],
)
def test_an_arm_whose_plan_is_empty(
    name: str, rules: list[dict[str, Any]], bert: str, data: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    study = bert_study(bert, data, arms={"full": FULL, "empty": {"rules": rules, "learning_rate": 1e-3}})
    with pytest.raises(SurgeryError) as caught:
        compare(study, tmp_path / "out", registry=registry, workers=1)
    pinned(f"bad-plan-{name}", f"{caught.value}\n")
    assert not (tmp_path / "out" / RESULTS).exists()
