"""The figures: every number in a table, one colour for a method, nothing that misleads."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from synthetic import make_record, make_records, make_study, make_summary

from surgery.report.canvas import canvas
from surgery.report.figures import drawings
from surgery.report.palette import INK, colours, looks
from surgery.report.plots.drawing import MOST_VIEWS, Drawing, Picture
from surgery.report.plots.forgetting import learning_and_forgetting
from surgery.report.plots.rates import learning_rates
from surgery.report.readings import equal_budgets
from surgery.study import Comparison
from surgery.study.cells import final_cells
from surgery.study.choose import Choice
from surgery.study.curves import mean_curves
from surgery.study.forgetting.along import ProbeInfo
from surgery.study.forgetting.arms import ArmForgetting, Difference, Forgotten, Point
from surgery.study.forgetting.paths import forgetting_paths
from surgery.study.layers import singular_values
from surgery.study.statistics import Interval
from surgery.study.tables import tables
from surgery.study.tradeoff import tradeoffs

if TYPE_CHECKING:
    from conftest import Finish
    from matplotlib.axes import Axes

SIDEWAYS = {"difference", "memory", "time", "overlaps"}
"""Figures whose y axis only tells rows apart."""


def drawn_numbers(drawing: Drawing, picture: Picture) -> Iterator[float]:
    """Yield every number that a view draws in the units of its axes."""
    with canvas(drawing.width, drawing.height) as (_, axes):
        picture.draw(axes)
        for line in axes.lines:
            is_data = line.get_transform() == axes.transData and line.get_marker() not in ("<", ">")
            for x, y in zip(*map(list, line.get_data()), strict=True):
                if is_data:
                    yield from (x,) if drawing.name in SIDEWAYS else (x, y)
        for patch in axes.patches:
            if drawing.name in ("memory", "time"):
                yield patch.get_width()


def test_every_number_of_every_figure_stands_in_its_tables(comparison: Comparison) -> None:
    found = drawings(comparison)
    assert len(found) == 11
    for drawing in found:
        known: set[float] = set()
        for name in drawing.tables:
            with (comparison.folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
                rows = [cell for row in csv.reader(file) for cell in row]
            known |= {float(cell) for cell in rows if re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", cell)}
        told = np.array(sorted({scale * number for scale in (1, 100, 1 / 2**20) for number in known} | {0.0}))
        for picture in drawing.views:
            drawn = list(drawn_numbers(drawing, picture))
            assert drawn or drawing.name in ("norms", "ranks")
            for number in drawn:
                nearest = told[np.abs(told - number).argmin()]
                assert number == pytest.approx(nearest, rel=1e-5, abs=1e-9), (drawing.name, picture.label)


def test_the_shades_of_a_map_are_the_rows_of_its_table(comparison: Comparison) -> None:
    rows = tables(comparison.summary, comparison.records)["layers"][1]
    for drawing in drawings(comparison):
        if drawing.name in ("norms", "ranks"):
            for picture, arm in zip(drawing.views, ("full", "lora"), strict=True):
                with canvas(drawing.width, drawing.height) as (_, axes):
                    picture.draw(axes)
                    assert len(axes.patches) == len([row for row in rows if row[0] == arm]) == 6


def test_bars_begin_at_zero(comparison: Comparison) -> None:
    for drawing in drawings(comparison):
        if drawing.name in ("memory", "time"):
            with canvas(drawing.width, drawing.height) as (_, axes):
                drawing.views[0].draw(axes)
                assert axes.get_xlim()[0] == 0


def test_a_method_has_one_colour_in_every_study_and_the_reference_is_ink(comparison: Comparison) -> None:
    assert looks(comparison)["full"].colour == INK
    one = colours([("qv", "lora"), ("all", "lora"), ("b", "bias-only")])
    other = colours([("x", "strange"), ("biases", "bias-only"), ("whole", "lora"), ("f", "full")])
    assert one["qv"].colour == other["whole"].colour == "#0072b2"
    assert one["b"].colour == other["biases"].colour == "#d55e00"
    assert len({look.colour for look in (*one.values(),)}) == 3
    assert len({look.colour for look in other.values()}) == 4
    many = colours([(str(index), "lora") for index in range(10)])
    assert len({(look.colour, look.dash) for look in many.values()}) == 10


def ticks(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


def test_a_rate_that_diverged_or_is_hopeless_flattens_no_curve(comparison: Comparison) -> None:
    choices = (
        Choice("full", 1e-4, (3e-5, 1e-4, 3e-4, 1e-3), (1.23, 1.16, 1.21, None), edge=False),
        Choice("lora", 1e-3, (3e-4, 1e-3, 3e-3), (1.24, 1.17, 88.0), edge=False),
    )
    changed = replace(comparison, summary=replace(comparison.summary, choices=choices))
    drawing = learning_rates(changed, looks(changed))
    assert drawing is not None
    assert "diverged" in drawing.caption
    with canvas(drawing.width, drawing.height) as (_, axes):
        drawing.views[0].draw(axes)
        assert axes.get_ylim()[1] < 1.5
        marks = [line.get_marker() for line in axes.lines]
        assert marks.count("x") == 1
        assert marks.count("^") == 1
        assert any(text.get_text() == "88 ↑" for text in axes.texts)
        assert ticks(axes) == ["3e-5", "1e-4", "3e-4", "1e-3", "3e-3"]
        rings = [line for line in axes.lines if line.get_markersize() == 14]
        assert [float(ring.get_xdata()[0]) for ring in rings] == [1e-4, 1e-3]


def test_bands_are_the_range_of_few_seeds_and_an_interval_of_five() -> None:
    for seeds in (3, 5):
        study = make_study(seeds, grid=False)
        records = make_records(study)
        points = mean_curves(make_summary(study, records), records)  # type: ignore[arg-type]
        last = next(point for point in points if point.arm == "lora" and point.step == 240)
        ends = [r["curve"][-1]["validation_loss"] for r in records if r["arm"] == "lora"]
        assert last.validation_loss_nats == pytest.approx(np.mean(ends))
        assert ((last.low, last.high) == (min(ends), max(ends))) == (seeds == 3)
        assert last.low < last.validation_loss_nats < last.high
        assert last.flops == 240 * (11_000_000_000 + 60 * 331_776 + 11_100_000_000)
        assert last.seconds == pytest.approx(240 * (0.2 + 331_776 / 1e8))


def test_no_arm_on_the_front_is_beaten(comparison: Comparison) -> None:
    points = tradeoffs(comparison.summary, comparison.records)
    assert {point.axis for point in points} == {"parameters", "checkpoint_bytes", "seconds"}
    for point in points:
        beaten = any(
            other.axis == point.axis
            and (other.amount, -other.test) != (point.amount, -point.test)
            and other.amount <= point.amount
            and other.test >= point.test
            for other in points
        )
        assert point.on_front is not beaten


def test_ways_to_the_tuned_weights_are_drawn_where_they_were_measured() -> None:
    study = make_study(3, grid=False)
    rates = {name: arm.learning_rate[0] for name, arm in study.arms.items()}
    records = [make_record(cell) for cell in final_cells(study, rates)]
    plain = make_summary(study, records)
    assert forgetting_paths(plain) == ()
    end = Difference(0.1, Interval(0.05, 0.15), 3, 40)
    made = tuple(
        Point(seed, t, 0.4 + 0.2 * t, None, None, 0.1 * t + 0.01 * seed, None, None)
        for seed in (1, 2, 3)
        for t in (0.0, 0.5, 1.0)
    )
    arm = ArmForgetting("lora", "LoRA", 2.5, 2.6, None, None, end, None, False, None, None, None, made)
    probe = ProbeInfo(kind="loss", score="loss", unit="nats", greater_is_better=False, why="asked", chance=None)
    found = Forgotten(probe, 40, "accuracy", True, 0, 40, 0, 200, "full", (arm,), {})
    summary = replace(plain, forgotten=found)
    points = forgetting_paths(summary)
    assert [(p.arm, p.t, p.seeds) for p in points] == [("lora", 0.0, 3), ("lora", 0.5, 3), ("lora", 1.0, 3)]
    assert [round(p.forgotten, 6) for p in points] == [0.02, 0.07, 0.12]
    assert [round(p.learned, 6) for p in points] == [0.4, 0.5, 0.6]
    # A share that one seed lacks has no mean over seeds.
    fewer = replace(arm, points=made[1:])
    assert [p.t for p in forgetting_paths(replace(plain, forgotten=replace(found, arms=(fewer,))))] == [0.5, 1.0]
    comparison = Comparison(Path(), study, summary, tuple(records))  # type: ignore[arg-type]
    drawing = learning_and_forgetting(comparison, looks(comparison))
    assert drawing is not None
    assert drawing.tables == ("arms", "forgetting_paths")
    assert "W0 + t (W - W0)" in drawing.caption
    assert len(tables(summary, records)["forgetting_paths"][1]) == 3  # type: ignore[arg-type]


def test_singular_values_are_those_of_first_middle_and_last_layer(comparison: Comparison) -> None:
    found = singular_values(comparison.records)
    assert list(dict.fromkeys(value.matrix for value in found)) == [
        f"layer.{layer}.query.weight" for layer in (0, 3, 5)
    ]
    assert {(value.arm, value.seed) for value in found} == {("full", 1), ("lora", 1)}
    assert max(value.index for value in found if value.arm == "lora") == 8
    assert max(value.index for value in found if value.arm == "full") == 32


def test_there_is_a_switch_for_every_view(comparison: Comparison) -> None:
    style = (Path(__file__).parents[2] / "surgery/report/templates/style.css").read_text(encoding="utf-8")
    numbers = {int(number) for number in re.findall(r"input:nth-of-type\((\d+)\):checked ~ \.view", style)}
    assert numbers == set(range(1, MOST_VIEWS + 1))
    assert all(len(drawing.views) <= MOST_VIEWS for drawing in drawings(comparison))


def test_a_folder_of_an_earlier_version_has_a_report(finish: Finish, tmp_path: Path) -> None:
    from surgery.report import build_report

    folder = finish(tmp_path / "study", make_study(3)).folder
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for record in records:
        for key in ("cost", "weights"):
            record.pop(key, None)
        record["timing"]["device_peak"] = 5
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    study, summary = (json.loads((folder / name).read_text()) for name in ("study.json", "summary.json"))
    del study["spec"]["weights"]
    study["hash"] = summary["study"] = "0" * 64  # what a version without that key made of it
    for key in ("overlaps", "results"):
        summary.pop(key)
    for row in summary["rows"]:
        for key in ("cost", "apart", "clock", "device_peak"):
            row.pop(key)
    for name, told in (("study.json", study), ("summary.json", summary)):
        (folder / name).write_text(json.dumps(told))
    (folder / "tables" / "loss_curves.csv").unlink()
    page = build_report(folder).read_text(encoding="utf-8")
    assert (folder / "tables" / "loss_curves.csv").is_file()
    assert 'id="spectra"' not in page
    assert 'id="curves"' in page
    assert "predicted by the cost model. One run" not in page


def test_readings_at_equal_budgets_become_a_table(comparison: Comparison) -> None:
    told = [
        SimpleNamespace(
            arm=arm, axis=axis, amount=amount, step=step, loss=loss, coarse=arm == "full", unfinished=step < 240
        )
        for arm, step, loss in (("full", 110.0, 1.3), ("lora", 240.0, 1.2))
        for axis, amount in (("flops", 5.3e12), ("seconds", 48.2))
    ]
    found = equal_budgets(told, comparison.summary, looks(comparison))
    assert found.columns == ("at 5.3 TFLOP", "at 48.2 s")
    assert [row.label for row in found.rows] == ["full tuning", "LoRA, all linears, r=8"]
    full, lora = (row.cells[0] for row in found.rows)
    assert (full.text, full.notes, full.badges) == ("1.300", ("after 110 steps",), ("coarse", "mid-schedule"))
    assert (lora.text, lora.badges) == ("1.200", ())
    assert equal_budgets((), comparison.summary, looks(comparison)).rows == ()
