"""Budgets on other axes than steps, readings at equal amounts, and grids that go on beyond an edge."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stub import ITEMS, Stub, text_registry
from synthetic import make_record, make_records, make_study, make_summary
from tiny_studies import bert_study

from surgery.engine.scheduler import InProcess
from surgery.errors import StateError
from surgery.registry import Registry
from surgery.study import Comparison, StudySpec, compare
from surgery.study.allot import ALLOTTED, allotted
from surgery.study.cells import Cell, final_cells
from surgery.study.choose import expected_best, next_rates
from surgery.study.results import RESULTS
from surgery.study.run_cell import versions

OPTIMUM = {"full": 1e-2, "lora": 1e-4, "bias": 3e-3}


@dataclass
class Shifted(Stub):
    """A stub whose arms learn best at other rates than their grids hold."""

    def __call__(self, cell: Cell) -> Any:
        with self.log.open("a") as file:
            file.write(f"{cell.key} 1\n")
        record = make_record(cell, ITEMS, versions=versions(text_registry()))
        off = abs(np.log10(cell.rate / OPTIMUM.get(cell.arm, cell.rate)))
        record["validation"]["loss"] = 1.0 + 0.1 * float(off)
        return record


def run(folder: Path, stub: Stub, study: StudySpec) -> Comparison:
    with stub.installed():
        return compare(study, folder, registry=text_registry(), engine=InProcess())


# Grids ---------------------------------------------------------------------------------------------------------------


def test_a_grid_goes_on_where_its_best_lies_at_an_edge(tmp_path: Path) -> None:
    stub = Shifted(tmp_path / "log")
    comparison = run(tmp_path / "study", stub, make_study(3))
    choices = {choice.arm: choice for choice in comparison.summary.choices}
    # 3e-5, 1e-4, 3e-4: by the last ratio, which is 3 and so at least half a decade: 9.49e-4, 3e-3; then no tries are left.
    assert choices["full"].grid == (3e-5, 1e-4, 3e-4, 9.49e-4, 3e-3)
    assert choices["full"].extra == (9.49e-4, 3e-3)
    assert (choices["full"].rate, choices["full"].edge) == (3e-3, True)
    # By 10/3, and the best comes to lie inside.
    assert choices["lora"].extra == (2.7e-5, 9e-5)
    assert (choices["lora"].rate, choices["lora"].edge) == (9e-5, False)
    assert choices["bias"].extra == ()
    checks = {check.name: check for check in comparison.summary.checks}
    assert checks["search budget"].detail == (
        "3 tries for every grid, up to 2 more at an edge; tries: full tuning 5 (0.000949, 0.003 beyond its grid), "
        "LoRA, all linears, r=8 5 (2.7e-05, 9e-05 beyond its grid), bias only 3"
    )
    assert checks["learning rates inside their grids"].status == "warn"
    table = (comparison.folder / "tables" / "learning_rates.csv").read_text("utf-8").splitlines()
    assert table[0] == "arm,learning_rate,validation_loss_nats,chosen,beyond_grid"
    assert "full,0.003,1.052288,yes,yes" in table
    # Resumable: nothing runs again, and what a kill took runs again.
    stub.log.unlink()
    again = run(comparison.folder, stub, comparison.study)
    assert stub.begun() == []
    assert again.summary == comparison.summary
    path = comparison.folder / RESULTS
    whole = path.read_text("utf-8")
    lines = whole.splitlines(keepends=True)
    beyond = [line for line in lines if '"learning_rate":0.000949' in line and '"phase":"tune"' in line]
    path.write_text("".join(line for line in lines if line not in beyond), encoding="utf-8")
    run(comparison.folder, stub, comparison.study)
    assert len(stub.begun()) == 1
    assert path.read_text("utf-8") == whole


def test_no_grid_goes_on_where_that_is_switched_off(tmp_path: Path) -> None:
    comparison = run(tmp_path / "study", Shifted(tmp_path / "log"), make_study(3, extend_grids=0))
    assert all(choice.extra == () for choice in comparison.summary.choices)
    detail = next(check.detail for check in comparison.summary.checks if check.name == "search budget")
    assert "none beyond the grids" in detail


def test_a_grid_of_which_every_rate_diverged_goes_on_below() -> None:
    study = make_study(3)
    records: Any = make_records(study, 50)
    for record in records:
        if record["phase"] == "tune" and record["arm"] == "bias":
            record["diverged"] = True
    assert next_rates(study, records) == {"bias": 3.16e-4}


def test_the_expected_best_of_k_tries() -> None:
    assert expected_best([3.0]) == (3.0,)
    one, two = expected_best([1.0, 3.0])
    assert (one, two) == (2.0, pytest.approx(1 * 0.75 + 3 * 0.25))
    draws = np.random.default_rng(0).choice([0.4, 0.5, 0.9, 0.9], (200_000, 3)).min(axis=1)
    # The one that diverged counts as the worst.
    assert expected_best([0.5, 0.9, None, 0.4])[2] == pytest.approx(draws.mean(), abs=2e-3)
    assert expected_best([None, None]) == ()


# Readings ------------------------------------------------------------------------------------------------------------


def test_losses_are_read_at_equal_amounts_from_the_same_curves() -> None:
    study = make_study(3)
    records = make_records(study, 100)
    summary = make_summary(study, records)
    found = {(reading.axis, reading.arm): reading for reading in summary.readings}
    assert {axis for axis, _ in found} == {"steps", "tokens", "flops", "seconds"}
    full = found["flops", "full"]
    runs = [record for record in records if record["arm"] == "full" and record["phase"] == "final"]
    cheapest = min(
        (record["cost"]["forward"] + record["cost"]["backward"]) * 240
        for record in records
        if record["phase"] == "final" and record["arm"] != "frozen"
    )
    step = cheapest / (runs[0]["cost"]["forward"] + runs[0]["cost"]["backward"])
    assert (full.amount, full.step) == (cheapest, pytest.approx(step))
    assert (full.before, full.after, full.coarse, full.unfinished) == (120, 160, False, True)
    curves = [{p["step"]: p["validation_loss"] for p in record["curve"]} for record in runs]
    expected = np.mean([c[120] + (step - 120) / 40 * (c[160] - c[120]) for c in curves])
    assert full.loss == pytest.approx(expected)
    assert found["steps", "full"].loss == pytest.approx(np.mean([curve[240] for curve in curves]))
    assert not found["steps", "full"].unfinished


def test_a_reading_between_far_points_is_called_coarse_and_one_without_numbers_is_none() -> None:
    study = make_study(3)
    records = make_records(study, 100)
    for record in records:
        record["curve"] = [record["curve"][0], record["curve"][-1]]
        if record["arm"] == "bias":
            record["curve"][-1]["validation_loss"] = None
    found = {(reading.axis, reading.arm): reading for reading in make_summary(study, records).readings}
    assert found["flops", "full"].coarse
    assert not found["steps", "full"].coarse
    assert found["steps", "bias"].loss is None


# Budgets -------------------------------------------------------------------------------------------------------------


def flops_study(bert: str, data: dict[str, str], **changes: Any) -> StudySpec:
    return bert_study(bert, data, **{"budget": {"axis": "flops"}, "seeds": [1, 2, 3], "weights": "none", **changes})


def test_equal_flops_give_cheaper_arms_more_steps(
    bert: str, data: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    study = flops_study(bert, data)
    comparison = compare(study, tmp_path / "out", registry=registry, workers=1)
    kept = json.loads((comparison.folder / ALLOTTED).read_text("utf-8"))
    assert kept["steps"]["full"] == 8
    assert kept["steps"]["frozen"] > kept["steps"]["lora"] > 8
    updates = {record["arm"]: record["budget"]["updates"] for record in comparison.records}
    assert updates == kept["steps"]
    checks = {check.name: check for check in comparison.summary.checks}
    assert {check.status for check in comparison.summary.checks} <= {"pass", "warn", "none"}
    assert checks["equal FLOPs"].detail.startswith("within 10 % of the reference's; updates: frozen + head")
    assert checks["order of the training examples"].detail.endswith("as far as the shorter run goes")
    # Going on uses the numbers that were kept, and no others.
    (comparison.folder / RESULTS).write_text(
        "".join((comparison.folder / RESULTS).read_text("utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8"
    )
    again = compare(study, comparison.folder, registry=registry, workers=1)
    assert [record["key"] for record in again.records] == [record["key"] for record in comparison.records]

    records: Any = json.loads(json.dumps(comparison.records))
    for record in records:
        if record["arm"] == "lora" and record["seed"] == 2:
            record["budget"]["updates"] = record["conditions"]["scored_at"] = 8
    spoilt = make_summary(study, records)
    assert "equal FLOPs: unequal: lora, seed 2: 0." in spoilt.blocked
    records[-1]["conditions"]["order"][2] = "0" * 16
    assert "within the first 4 examples" in make_summary(study, records).blocked


def test_equal_seconds_are_timed_once_and_kept(tmp_path: Path) -> None:
    study, asked = make_study(3, budget={"axis": "seconds"}), []

    def measured(cells: Any) -> tuple[int, dict[str, float]]:
        asked.append([cell.arm for cell in cells])
        return 240, {"full": 0.4, "lora": 0.2, "bias": 0.1, "frozen": 0.05}

    steps = allotted(study, tmp_path, measured)
    assert steps == {"full": 240, "lora": 480, "bias": 960, "frozen": 1920}
    assert allotted(study, tmp_path, measured) == steps
    assert len(asked) == 1
    rates = {"full": 1e-4, "lora": 1e-3, "bias": 3e-3}
    cells = {cell.arm: cell for cell in final_cells(study, rates, steps)}
    assert cells["lora"].spec.training is not None
    assert cells["lora"].spec.training.steps == 480
    assert cells["lora"].key != next(cell.key for cell in final_cells(study, rates) if cell.arm == "lora")
    with pytest.raises(StateError, match="belongs to another study"):
        allotted(make_study(3, budget={"axis": "seconds"}, margin=0.02), tmp_path, measured)
    (tmp_path / ALLOTTED).write_text("{")
    with pytest.raises(StateError, match="does not say how many steps"):
        allotted(study, tmp_path, measured)
    assert allotted(make_study(3), tmp_path, measured) is None


@pytest.mark.parametrize(
    "number", ["true", "7.9", '"77"', "0", "-3", "1e999", "1" + "0" * 30, "null", "[" * 9999], ids=len
)
def test_steps_that_are_no_whole_numbers_are_refused(tmp_path: Path, number: str) -> None:
    study = make_study(3, budget={"axis": "flops"})
    steps = f'{{"full": 240, "lora": {number}, "bias": 960, "frozen": 1920}}'
    (tmp_path / ALLOTTED).write_text(f'{{"study": "{study.hash}", "steps": {steps}}}')
    with pytest.raises(StateError, match=r"budget\.json: this file") as caught:
        allotted(study, tmp_path, lambda cells: (0, {}))
    assert "restore it" in caught.value.hint


def test_unequal_seconds_are_red_and_noise_is_not() -> None:
    study = make_study(3, budget={"axis": "seconds"})
    records = make_records(study, 100)
    for record in records:
        record["budget"]["updates"] = round(100 / record["timing"]["step_cpu"])
        record["timing"]["step_cpu"] *= 1.1 if record["arm"] == "lora" else 1.0
    check = next(c for c in make_summary(study, records).checks if c.name == "equal seconds")
    assert check.status == "pass"
    for record in records:
        record["timing"]["step_cpu"] *= 1.5 if record["arm"] == "bias" else 1.0
    check = next(c for c in make_summary(study, records).checks if c.name == "equal seconds")
    assert (check.status, "bias, seed" in check.detail) == ("fail", True)


def test_a_study_without_the_new_keys_keeps_its_hash() -> None:
    plain = json.loads(make_study(3).canonical_json())
    assert not {"budget", "metrics", "extend_grids"} & set(plain)
    changed = json.loads(make_study(3, budget={"axis": "flops"}, metrics=["macro_f1"], extend_grids=0).canonical_json())
    assert {"budget", "metrics", "extend_grids"} <= set(changed)
    assert (
        StudySpec.model_validate(changed).hash
        == make_study(3, budget={"axis": "flops"}, metrics=["macro_f1"], extend_grids=0).hash
    )


def test_further_metrics_have_intervals_and_no_verdict() -> None:
    study = make_study(3, metrics=["accuracy"])
    summary = make_summary(study, make_records(study, 200))
    found = {(each.metric, each.arm): each for each in summary.secondary}
    assert found["accuracy", "full"].interval is None
    bias = found["accuracy", "bias"]
    assert bias.difference == summary.row("bias").pair.difference  # type: ignore[union-attr]
    assert bias.interval is not None
    assert bias.difference in bias.interval
    assert not any(hasattr(each, "verdict") for each in summary.secondary)
    with pytest.raises(StateError, match="no run has the metric 'f2'"):
        make_summary(make_study(3, metrics=["f2"]), make_records(study, 50))
