"""Every way in which a comparison can be unfair: each is caught in its own words, and an honest study passes.

Two kinds of case. Records of a finished study are tampered with, in its results file, and the study is summed up again;
or a study that is unfair from the start is run on a tiny model. Golden texts hold the line of the checklist and what
is then said of each arm: SURGERY_REGENERATE_GOLDEN=1 rewrites them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stub import Stub, text_registry
from synthetic import make_study
from tiny_studies import bert_study, write_rows

from surgery.engine.scheduler import InProcess
from surgery.errors import DataError, SpecError
from surgery.registry import Registry
from surgery.study import Comparison, StudySpec, compare
from surgery.study.results import RESULTS

GOLDEN = Path(__file__).parent / "golden"
Records = list[dict[str, Any]]


def pinned(name: str, text: str) -> None:
    """Compare `text` with golden/NAME.txt."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("SURGERY_REGENERATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"SURGERY_REGENERATE_GOLDEN=1 writes {path.name}"
    assert text == path.read_text(encoding="utf-8")


def told(comparison: Comparison, *names: str) -> str:
    """Return the lines of the checklist with these names, and the verdict on each arm; hashes and versions masked."""
    checks = [check for check in comparison.summary.checks if check.name in names]
    assert [check.name for check in checks] == sorted(names, key=[c.name for c in checks].index)
    rows = [row for row in comparison.summary.rows if row.verdict is not None and row.kind == "arm"]
    lines = [
        *(f"{check.status}  {check.name}: {check.detail}" for check in checks),
        *(f"{row.label}: {row.verdict.word}. {row.verdict.reason}" for row in rows if row.verdict),
    ]
    return re.sub(r"\b[0-9a-f]{8,}\b", "<hash>", "\n".join(lines)) + "\n"


def only_these(comparison: Comparison, *names: str) -> None:
    """Assert that no other line of the checklist is red: each case is caught by its own check."""
    assert {check.name for check in comparison.summary.checks if check.status == "fail"} == set(names)


# Tampered records --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("honest")
    return run(folder / "study", Stub(folder / "log"), make_study(5))


def run(folder: Path, stub: Stub, study: StudySpec) -> Comparison:
    with stub.installed():
        return compare(study, folder, registry=text_registry(), engine=InProcess())


def tampered(honest: Comparison, folder: Path, spoil: Callable[[Records], None]) -> Comparison:
    """Return the honest study again, its results file spoilt."""
    shutil.copytree(honest.folder, folder)
    path = folder / RESULTS
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    spoil(records)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    stub = Stub(folder.parent / "log")
    comparison = run(folder, stub, honest.study)
    assert stub.begun() == []
    return comparison


def finals(records: Records, arm: str) -> Records:
    return [record for record in records if record["phase"] == "final" and record["arm"] == arm]


def other_head(records: Records) -> None:
    finals(records, "lora")[1]["hashes"]["head"] = "f" * 64


def other_start(records: Records) -> None:
    finals(records, "bias")[0]["hashes"]["start"] = "9" * 64


def other_order(records: Records) -> None:
    finals(records, "bias")[0]["hashes"]["order"] = "e" * 64


def other_base(records: Records) -> None:
    finals(records, "full")[0]["hashes"]["base"] = "c" * 64


def other_data(records: Records) -> None:
    records[0]["hashes"]["data"] = "d" * 64


def more_updates(records: Records) -> None:
    finals(records, "full")[0]["budget"]["updates"] = 480
    finals(records, "full")[0]["conditions"]["scored_at"] = 480


def more_examples(records: Records) -> None:
    finals(records, "lora")[0]["budget"]["examples"] = 7680


def fewer_tokens(records: Records) -> None:
    finals(records, "bias")[4]["budget"]["tokens"] = 70_000


def peeked(records: Records) -> None:
    next(record for record in records if record["arm"] == "lora")["test_reads"] = 1


def read_twice(records: Records) -> None:
    finals(records, "lora")[0]["test_reads"] = 2


def validation_is_test(records: Records) -> None:
    for record in records:
        record["hashes"]["data.validation"] = record["hashes"]["data.test"]


def validation_holds_test(records: Records) -> None:
    for record in records:
        record["conditions"]["shared_rows"]["validation & test"] = 400


def train_holds_test(records: Records) -> None:
    for record in records:
        record["conditions"]["shared_rows"]["train & test"] = 16


def f1_beside_accuracy(records: Records) -> None:
    for record in finals(records, "lora"):
        record["metric"] = {"name": "macro_f1", "greater_is_better": True}
        record["test"] = {"loss": record["test"]["loss"], "macro_f1": record["test"]["accuracy"] + 0.05}


def other_direction(records: Records) -> None:
    finals(records, "lora")[0]["metric"] = {"name": "accuracy", "greater_is_better": False}


def other_dropout(records: Records) -> None:
    for record in finals(records, "lora"):
        record["conditions"]["dropout"] = "0 in 25 modules, hidden_dropout_prob 0.1"


def other_clipping(records: Records) -> None:
    for record in finals(records, "full"):
        record["conditions"]["max_grad_norm"] = None


def other_decay(records: Records) -> None:
    for record in finals(records, "lora"):
        record["conditions"]["groups"][1]["weight_decay"] = 0.1


def faster_head(records: Records) -> None:
    for record in finals(records, "lora"):
        record["conditions"]["groups"][0]["learning_rate"] = 2e-2


def best_epoch(records: Records) -> None:
    for record in finals(records, "lora"):
        record["conditions"]["scored_at"] = 120


def tuning_seed_reported(records: Records) -> None:
    for record in records:
        if record["phase"] == "tune":
            record["seed"] = 1


def untrained_reference(records: Records) -> None:
    for record in finals(records, "full"):
        record["validation"]["loss"] = 1.95


def diverged_reference(records: Records) -> None:
    finals(records, "full")[0]["diverged"] = True


def no_frozen_row(records: Records) -> None:
    for record in finals(records, "frozen"):
        record["arm"] = "lora"


TAMPERED: dict[str, tuple[Callable[[Records], None], str]] = {
    "other-head": (other_head, "initial head tensors"),
    "other-start": (other_start, "state at the start"),
    "other-order": (other_order, "order of the training examples"),
    "other-base": (other_base, "base weights"),
    "other-data": (other_data, "data and splits"),
    "more-updates": (more_updates, "examples, tokens and updates"),
    "more-examples": (more_examples, "examples, tokens and updates"),
    "fewer-tokens": (fewer_tokens, "examples, tokens and updates"),
    "peeked": (peeked, "test split"),
    "read-twice": (read_twice, "test split"),
    "validation-is-test": (validation_is_test, "test rows apart from the others"),
    "test-in-validation": (validation_holds_test, "test rows apart from the others"),
    "test-in-train": (train_holds_test, "test rows apart from the others"),
    "f1-beside-accuracy": (f1_beside_accuracy, "metric"),
    "other-direction": (other_direction, "metric"),
    "other-dropout": (other_dropout, "dropout of the base"),
    "other-clipping": (other_clipping, "weight decay and clipping"),
    "other-decay": (other_decay, "weight decay and clipping"),
    "faster-head": (faster_head, "learning rate of the head"),
    "best-epoch": (best_epoch, "scored after the last step"),
    "untrained-reference": (untrained_reference, "every arm learned"),
    "diverged-reference": (diverged_reference, "every arm learned"),
}


def test_an_honest_study_passes_every_line(honest: Comparison) -> None:
    assert {check.status for check in honest.summary.checks} == {"pass"}
    assert honest.summary.blocked == ""
    assert honest.summary.row("bias").verdict.word == "worse"  # type: ignore[union-attr]
    pinned("honest", told(honest, *(check.name for check in honest.summary.checks if "versions" not in check.name)))


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered_records_are_caught_by_their_own_line_and_block_every_verdict(
    case: str, honest: Comparison, tmp_path: Path
) -> None:
    spoil, name = TAMPERED[case]
    comparison = tampered(honest, tmp_path / "study", spoil)
    only_these(comparison, name)
    verdicts = [row.verdict for row in comparison.summary.rows if row.verdict]
    assert {verdict.word for verdict in verdicts} == {"unresolved"}
    assert all(verdict.blocked for row in comparison.summary.rows if (verdict := row.verdict) and row.pair)
    assert name in comparison.summary.blocked
    pinned(f"tampered-{case}", told(comparison, name))


def test_a_tuning_seed_that_is_reported_is_caught_in_the_study_and_in_records(
    honest: Comparison, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        make_study(5, tuning_seed=1)
    pinned("tuning-seed-is-a-seed", f"{caught.value}\n")
    # In records the cell's key betrays it before the audit does.
    with pytest.raises(Exception, match="is no result of this study"):
        tampered(honest, tmp_path / "study", tuning_seed_reported)
    from synthetic import make_records, make_summary

    records = make_records(make_study(5), 100)
    tuning_seed_reported(records)
    check = next(c for c in make_summary(make_study(5), records).checks if c.name == "tuning seed")
    assert (check.status, check.detail) == ("fail", "1 chose learning rates and is reported, too")


def test_a_missing_frozen_row_is_caught(honest: Comparison) -> None:
    from surgery.study.fairness import rows_check

    final: Any = [r for r in honest.records if r["phase"] == "final" and r["arm"] != "frozen"]
    assert rows_check(final).status == "fail"


def test_a_few_rows_in_two_splits_are_told_and_do_not_block(honest: Comparison, tmp_path: Path) -> None:
    def spoil(records: Records) -> None:
        for record in records:
            record["conditions"]["shared_rows"]["train & test"] = 8  # 1 % of 800

    comparison = tampered(honest, tmp_path / "study", spoil)
    only_these(comparison)
    pinned("few-shared-rows", told(comparison, "test rows apart from the others"))


def test_a_curve_that_was_lower_before_the_end_is_told_and_not_used(honest: Comparison, tmp_path: Path) -> None:
    def spoil(records: Records) -> None:
        for record in finals(records, "full"):
            record["curve"][3]["validation_loss"] = 0.5

    comparison = tampered(honest, tmp_path / "study", spoil)
    only_these(comparison)
    row = comparison.summary.row("full")
    assert (row.steps, row.best_step, row.best_loss) == (240, 120, 0.5)
    assert row.test == honest.summary.row("full").test
    pinned("lower-before-the-end", told(comparison, "scored after the last step"))


def test_an_arm_that_never_trained_gets_no_verdict_and_one_that_failed_once_keeps_its_own(
    honest: Comparison, tmp_path: Path
) -> None:
    def always(records: Records) -> None:
        for record in finals(records, "bias"):
            record["validation"]["loss"] = 2.5

    comparison = tampered(honest, tmp_path / "always", always)
    assert comparison.summary.blocked == ""
    assert comparison.summary.row("bias").state == "did not train"
    assert comparison.summary.row("lora").verdict == honest.summary.row("lora").verdict
    pinned("never-trained", told(comparison, "every arm learned"))

    def once(records: Records) -> None:
        finals(records, "bias")[2]["validation"]["loss"] = 2.5

    comparison = tampered(honest, tmp_path / "once", once)
    assert comparison.summary.row("bias").state == "partly"
    pinned("once-not-trained", told(comparison, "every arm learned"))


# Real runs ---------------------------------------------------------------------------------------------------------


def masked(text: str) -> str:
    """Return `text` without what another processor may compute differently."""
    return re.sub(r"\d+\.\d+(e[+-]?\d+)?|\b\d+e-\d+", "<number>", text)


def shrunk(bert: str, data: dict[str, str], **changes: Any) -> StudySpec:
    """A study that takes seconds."""
    grid = {"full": (1e-3, 3e-3, 1e-2), "lora": (1e-3, 3e-3, 1e-2)}
    rules = {
        "full": [{"role": ".*", "adapter": "full"}],
        "lora": [{"role": r"attention\..*", "adapter": "lora", "rank": 2}],
    }
    rates = changes.pop("rates", grid)
    arms = {name: {"rules": rules[name], "learning_rate": rates[name]} for name in rules}
    return bert_study(bert, data, arms=arms, **{"seeds": [1, 2, 3], "weights": "none", **changes})


def real(study: StudySpec, folder: Path, registry: Registry) -> Comparison:
    return compare(study, folder / "out", registry=registry, workers=1)


def test_an_honest_real_study_has_no_red_line(
    bert: str, data: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    study = shrunk(bert, data, extend_grids=1, metrics=["loss"])
    comparison = real(study, tmp_path, registry)
    only_these(comparison)
    statuses = {check.name: check.status for check in comparison.summary.checks}
    assert statuses.pop("seeds") == "warn"  # three of them
    # What may be a warning in so small a study speaks of its results, and not of how it was made.
    for name in ("learning rates inside their grids", "every arm learned", "scored after the last step"):
        statuses.pop(name)
    assert set(statuses.values()) == {"pass"}
    for record in comparison.records:
        assert record["hashes"]["start"]
        assert record["conditions"] is not None
        assert len(record["conditions"]["order"]) == 7  # 64 examples
    lora = next(r for r in comparison.records if r["arm"] == "lora")
    assert lora["conditions"] is not None
    assert lora["conditions"]["scales"] == [8.0]
    assert {each.metric for each in comparison.summary.secondary} == {"loss"}
    assert {reading.axis for reading in comparison.summary.readings} == {"steps", "tokens", "flops", "seconds"}
    assert (comparison.folder / "tables" / "metrics.csv").is_file()


def test_one_shared_learning_rate_gets_a_badge(
    bert: str, data: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    comparison = real(shrunk(bert, data, rates={"full": 3e-3, "lora": 3e-3}, seeds=[1]), tmp_path, registry)
    only_these(comparison)
    assert not comparison.summary.row("lora").swept
    names = ("learning rates chosen on validation loss", "search budget")
    lines = told(comparison, *names).splitlines()[:2]
    pinned("real-one-rate", masked("\n".join(lines) + "\n"))


def test_a_baseline_that_never_trained_blocks(
    bert: str, data: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    comparison = real(shrunk(bert, data, rates={"full": 90.0, "lora": 3e-3}, seeds=[1]), tmp_path, registry)
    only_these(comparison, "every arm learned")
    assert comparison.summary.row("full").state in ("partly", "did not train")
    assert "the reference did not train" in comparison.summary.blocked
    assert all(row.verdict.word == "unresolved" for row in comparison.summary.rows if row.verdict)


def test_a_test_that_chooses_is_refused_before_anything_runs(
    bert: str, data: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    same = tmp_path / "copy.jsonl"
    shutil.copy(data["validation"], same)
    with pytest.raises(DataError) as caught:
        real(shrunk(bert, {**data, "test": str(same)}), tmp_path, registry)
    pinned("real-test-is-validation", f"{caught.value}\n")
    assert not (tmp_path / "out" / RESULTS).exists()


def test_a_test_that_overlaps_with_what_chooses_blocks(
    bert: str, data: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed.jsonl"
    write_rows(mixed, 30, 900)
    rows = Path(data["validation"]).read_text("utf-8").splitlines()[:10]
    # Seen with another label is seen all the same.
    swapped = [{**json.loads(row), "label": "good"} for row in rows]
    mixed.write_text(mixed.read_text("utf-8") + "".join(json.dumps(row) + "\n" for row in swapped), encoding="utf-8")
    study = shrunk(bert, {**data, "test": str(mixed)}, rates={"full": 3e-3, "lora": 3e-3}, seeds=[1])
    comparison = real(study, tmp_path, registry)
    only_these(comparison, "test rows apart from the others")
    pinned("real-test-overlaps", masked(told(comparison, "test rows apart from the others")))


def test_unknown_metrics_are_refused_before_anything_runs(
    bert: str, data: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        real(shrunk(bert, data, metrics=["accuracy", "macro_f2"]), tmp_path, registry)
    pinned("real-unknown-metric", f"{caught.value}\n")
    assert not (tmp_path / "out" / RESULTS).exists()
