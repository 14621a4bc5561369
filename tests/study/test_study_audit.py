"""Unfair studies, each caught with its own message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from synthetic import make_records, make_study, make_summary

from surgery.errors import StateError, TrainingError
from surgery.study.choose import choose_rates
from surgery.study.measure import measure
from surgery.study.summary import Summary
from surgery.study.verdict import Verdict

Records = list[dict[str, Any]]


def finals(records: Records, arm: str) -> Records:
    return [record for record in records if record["phase"] == "final" and record["arm"] == arm]


def other_head(records: Records) -> None:
    finals(records, "lora")[1]["hashes"]["head"] = "f" * 64


def other_order(records: Records) -> None:
    finals(records, "bias")[0]["hashes"]["order"] = "e" * 64


def other_data(records: Records) -> None:
    records[0]["hashes"]["data"] = "d" * 64


def other_base(records: Records) -> None:
    finals(records, "full")[0]["hashes"]["base"] = "c" * 64


def more_updates(records: Records) -> None:
    finals(records, "full")[0]["budget"]["updates"] = 480


def peeked(records: Records) -> None:
    records[0]["test_reads"] = 1


def read_twice(records: Records) -> None:
    finals(records, "lora")[0]["test_reads"] = 2


def untrained_reference(records: Records) -> None:
    finals(records, "full")[0]["validation"]["loss"] = 1.95


def diverged_reference(records: Records) -> None:
    finals(records, "full")[0]["diverged"] = True


BLOCKING: dict[str, tuple[Callable[[Records], None], str, str]] = {
    "head": (other_head, "initial head tensors", "arms differ on seed 2"),
    "order": (other_order, "order of the training examples", "arms differ on seed 1"),
    "data": (other_data, "data and splits", "2 different ones"),
    "base": (other_base, "base weights", "2 different ones"),
    "budget": (more_updates, "examples, tokens and updates", "480 updates in full"),
    "peeked": (peeked, "test split", "read while tuning full"),
    "read twice": (read_twice, "test split", "read 2 times in one run of lora"),
    "untrained": (untrained_reference, "every arm learned", "the reference did not train"),
    "diverged": (diverged_reference, "every arm learned", "diverged"),
}


def check(summary: Summary, name: str) -> tuple[str, str]:
    return next((found.status, found.detail) for found in summary.checks if found.name == name)


@pytest.mark.parametrize("case", BLOCKING)
def test_an_unfair_study_gets_a_red_line_and_no_verdict(case: str) -> None:
    spoil, name, message = BLOCKING[case]
    study = make_study(5)
    records = make_records(study, 200)
    assert check(make_summary(study, records), name)[0] == "pass"
    spoil(records)
    summary = make_summary(study, records)
    status, detail = check(summary, name)
    assert status == "fail"
    assert message in detail
    assert name in summary.blocked
    assert {row.verdict.word for row in summary.rows if row.verdict} == {"unresolved"}
    assert all(row.verdict.blocked for row in summary.rows if row.verdict and row.pair)


def test_an_arm_that_did_not_train_is_flagged_and_does_not_block() -> None:
    study = make_study(5)
    records = make_records(study, 200)
    finals(records, "bias")[0]["validation"]["loss"] = 2.5
    summary = make_summary(study, records)
    assert check(summary, "every arm learned")[0] == "warn"
    assert "no better than always answering" in summary.row("bias").flag
    assert summary.blocked == ""


def test_a_broken_round_trip_is_red_and_does_not_block() -> None:
    study = make_study(5)
    records = make_records(study, 200)
    finals(records, "lora")[0]["merge"]["differ"] = 3
    summary = make_summary(study, records)
    assert check(summary, "merge and unmerge give back the base")[0] == "fail"
    assert summary.blocked == ""


def test_unswept_edge_and_few_seeds_are_told() -> None:
    shared = {
        name: {"rules": [{"role": ".*", "adapter": name}], "learning_rate": 1e-4} for name in ("full", "lora", "bias")
    }
    study = make_study(3, arms=shared)
    summary = make_summary(study, make_records(study, 200))
    status, detail = check(summary, "learning rates chosen on validation loss")
    assert status == "warn"
    assert "all arms share one rate" in detail
    assert check(summary, "seeds")[0] == "warn"
    assert all(row.verdict.indicative or row.verdict.word == "unresolved" for row in summary.rows if row.verdict)
    wide = make_study(5)
    records = make_records(wide, 200)
    tuned = [record for record in records if record["phase"] == "tune" and record["arm"] == "lora"]
    tuned[-1]["validation"]["loss"] = 0.1
    choices = choose_rates(wide, records)  # type: ignore[arg-type]
    assert {choice.arm: choice.edge for choice in choices} == {"full": False, "lora": True, "bias": False}


def test_rates_are_chosen_by_validation_loss_and_a_diverged_one_never() -> None:
    study = make_study(5)
    records = make_records(study, 200)
    tuned = sorted(
        (record for record in records if record["phase"] == "tune" and record["arm"] == "full"),
        key=lambda record: record["learning_rate"],
    )
    tuned[1]["diverged"] = True
    tuned[2]["validation"]["loss"] = None
    chosen = {choice.arm: choice for choice in choose_rates(study, records)}  # type: ignore[arg-type]
    assert chosen["full"].rate == 3e-5
    assert chosen["full"].losses[1:] == (None, None)
    for record in tuned:
        record["diverged"] = True
    with pytest.raises(TrainingError, match="every learning rate of the arm 'full' diverged"):
        choose_rates(study, records)  # type: ignore[arg-type]


def test_a_run_without_a_finite_metric_is_no_verdict() -> None:
    study = make_study(5)
    records = make_records(study, 200)
    finals(records, "lora")[0]["test"]["accuracy"] = None
    summary = make_summary(study, records)
    row = summary.row("lora")
    assert row.pair is None
    assert row.test is None
    assert row.verdict is not None
    assert row.verdict.word == "unresolved"
    assert summary.row("bias").pair is not None


def test_a_metric_that_is_no_mean_is_recomputed_on_resampled_items() -> None:
    from sklearn.metrics import matthews_corrcoef

    study = make_study(3, resamples=1000)
    records = make_records(study, 200)

    def score(items: Any) -> dict[str, float]:
        return {"matthews": float(matthews_corrcoef(items["label"], items["prediction"]))}

    for record in records:
        if record["test"] is not None:
            items = {name: np.array(values) for name, values in record["items"].items()}
            record["metric"] = {"name": "matthews", "greater_is_better": True}
            record["test"]["matthews"] = score(items)["matthews"]
    final: Any = [record for record in records if record["phase"] == "final"]
    with pytest.raises(StateError, match="no mean over items"):
        measure(final, "matthews", study.seeds, 1000, None)
    few = [record for record in final if record["arm"] in ("full", "lora")]
    measured = measure(few, "matthews", study.seeds, 60, score)
    assert measured.draws["full"].shape == (60, 3)
    assert measured.points["lora"][0] == finals(records, "lora")[0]["test"]["matthews"]


def test_a_plugin_that_means_something_else_by_accuracy_is_believed() -> None:
    study = make_study(3)
    records = make_records(study, 100)
    for record in records:
        if record["test"] is not None:
            for told in (record["test"], record["majority"]["test"]):
                told["accuracy"] = told["accuracy"] ** 2
    final: Any = [record for record in records if record["phase"] == "final" and record["arm"] == "full"]

    def score(items: Any) -> dict[str, float]:
        return {"accuracy": float(np.mean(items["prediction"] == items["label"]) ** 2)}

    measured = measure(final, "accuracy", study.seeds, 20, score)
    assert measured.points["full"][0] == final[0]["test"]["accuracy"]


@pytest.mark.parametrize("arm", ["lora", "full"])
def test_the_reason_names_the_run_whose_metric_is_not_a_number(arm: str) -> None:
    study = make_study(5)
    records = make_records(study, 200)
    name = records[0]["metric"]["name"]
    finals(records, arm)[3]["test"][name] = None
    told = f"{name} is not a number in arm {arm}, seed {finals(records, arm)[3]['seed']}"
    assert make_summary(study, records).row("lora").verdict == Verdict("unresolved", told)
    more_updates(records)  # another check may fail as well: the number is missing nevertheless
    verdict = make_summary(study, records).row("lora").verdict
    assert verdict is not None
    assert verdict.blocked
    assert verdict.reason.endswith(f"; {told}")


def test_a_secondary_metric_that_is_not_a_number_is_noted() -> None:
    study = make_study(5, metrics=("extra",))
    records = make_records(study, 200)
    for record in records:
        if record["test"] is not None:
            record["test"]["extra"] = 0.5
            record["items"]["extra"] = [0.0, 1.0] * 100
    finals(records, "bias")[0]["test"]["extra"] = None
    assert "extra is not a number in arm bias, seed 1: not shown" in make_summary(study, records).notes
