"""Costs in studies: what is far off is marked, and what was not measured is missing and not invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stub import Stub, text_registry
from synthetic import make_records, make_study, make_summary

from surgery.engine.scheduler import InProcess
from surgery.report import build_report
from surgery.study import Comparison, compare
from surgery.study.predicted import apart
from surgery.study.record import memory_total
from surgery.study.turns import TIMINGS, Clock, Spread, read_turns, write_turns


def records() -> list[dict[str, Any]]:
    return make_records(make_study(3, grid=False))


def check_of(summary: Any) -> Any:
    return next(check for check in summary.checks if check.name == "cost as predicted")


def test_predictions_that_hold_pass() -> None:
    summary = make_summary(make_study(3, grid=False), records())
    assert check_of(summary).status == "pass"
    assert all(row.apart == () for row in summary.rows)


@pytest.mark.parametrize(
    ("component", "factor", "far"),
    [
        ("activations", 1.11, True), ("activations", 0.89, True), ("activations", 1.09, False), ("forward", 0.89, True),
        ("backward", 1.2, True), ("weights", 0.85, True), ("gradients", 2.0, True), ("optimizer", 0.5, True),
    ],
)  # fmt: skip
def test_what_is_more_than_a_tenth_off_is_marked(component: str, factor: float, far: bool) -> None:
    found = records()
    for record in found:
        if record["arm"] == "lora":
            measured = record["cost"].get(component) or record["memory"][component]
            record["cost"]["predicted"][component] = int(measured * factor)
    study = make_study(3, grid=False)
    summary = make_summary(study, found)
    assert summary.row("lora").apart == ((component,) if far else ())
    assert summary.row("full").apart == ()
    check = check_of(summary)
    assert check.status == ("warn" if far else "pass")
    if far:
        assert check.detail == f"more than 10 % from what was measured: LoRA, all linears, r=8: {component}"
    assert not summary.blocked


def test_the_small_change_of_bookkeeping_is_not_marked() -> None:
    record = next(record for record in records() if record["arm"] == "frozen")
    record["cost"]["predicted"]["optimizer"] = record["memory"]["optimizer"] * 2  # 25 KB more
    assert apart(record["memory"], record["cost"]) == ()


def test_what_is_not_known_is_not_marked() -> None:
    found = records()
    for record in found:
        record["cost"]["predicted"] |= {"activations": None, "forward": None, "backward": None, "why": "it has experts"}
    summary = make_summary(make_study(3, grid=False), found)
    assert check_of(summary).status == "none"
    assert check_of(summary).detail == "not predicted: it has experts"


def test_work_stands_in_the_verdict_line() -> None:
    from surgery.study.words import sentence

    summary = make_summary(make_study(3, grid=False), records())
    row, full = summary.row("bias"), summary.row("full")
    assert row.cost is not None
    assert full.cost is not None
    ratio = (row.cost["forward"] + row.cost["backward"]) / (full.cost["forward"] + full.cost["backward"])
    assert f"{ratio:.2f}x the floating-point operations of a step" in sentence(summary, row)


def finished(folder: Path, *, old: bool = False) -> Comparison:
    with Stub(folder.with_suffix(".log")).installed():
        study, known = make_study(3, grid=False), text_registry()
        comparison = compare(study, folder, registry=known, engine=InProcess())
        if not old:
            return comparison
        # As a version without costs left it.
        lines = [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]
        for line in lines:
            del line["cost"]
        (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        (folder / TIMINGS).unlink()
        return compare(study, folder, registry=known, engine=InProcess())


def test_results_of_an_earlier_version_are_read_and_say_that_nothing_was_measured(tmp_path: Path) -> None:
    comparison = finished(tmp_path / "old", old=True)
    assert not (tmp_path / "old" / TIMINGS).exists()
    assert check_of(comparison.summary).detail == "not measured"
    assert all(row.cost is None and row.clock is None for row in comparison.summary.rows)
    assert comparison.summary.row("lora").step is not None  # of the runs themselves
    page = build_report(comparison.folder).read_text("utf-8")
    assert "The work of a step was not measured in this study." in page
    summary = json.loads((comparison.folder / "summary.json").read_text("utf-8"))
    for row in summary["rows"]:
        for name in ("clock", "cost", "apart", "device_peak"):
            del row[name]
    (comparison.folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    assert build_report(comparison.folder).read_text("utf-8") == page


def test_the_page_shows_both_and_marks_what_is_far_off(tmp_path: Path) -> None:
    comparison = finished(tmp_path / "new")
    page = build_report(comparison.folder).read_text("utf-8")
    section = page[page.index('id="costs"') : page.index('id="fairness"')]
    full = comparison.summary.row("full")
    assert full.memory is not None
    assert memory_total(full.memory) > 0
    assert "22.1 GFLOP<small>predicted 22.1 GFLOP</small>" in section
    assert "far off" not in section
    lines = (comparison.folder / "results.jsonl").read_text("utf-8").splitlines()
    changed = []
    for line in lines:
        record = json.loads(line)
        record["cost"]["predicted"]["backward"] *= 3 if record["arm"] == "bias" else 1
        changed.append(json.dumps(record) + "\n")
    (comparison.folder / "results.jsonl").write_text("".join(changed), "utf-8")
    with Stub(tmp_path / "again.log").installed():
        compare(comparison.study, comparison.folder, registry=text_registry(), engine=InProcess())
    page = build_report(comparison.folder).read_text("utf-8")
    assert "bias only: backward predicted more than 10 % off what was measured." in page
    assert '<span class="badge">far off</span>' in page


def test_the_clock_is_read_for_its_own_study_only(tmp_path: Path) -> None:
    turns: Any = {"full": {"step": [3.0, 1.0, 2.0], "step_cpu": [1.0], "base": [], "unmerged": [1.0], "merged": [1.0]}}
    write_turns(tmp_path, "abc", turns)
    assert read_turns(tmp_path, "abc") == turns
    assert read_turns(tmp_path, "abd") is None
    assert read_turns(tmp_path / "nowhere", "abc") is None
    (tmp_path / TIMINGS).write_text('{"study": "abc"', "utf-8")
    assert read_turns(tmp_path, "abc") is None
    good = json.dumps({"study": "abc", "arms": turns})
    (tmp_path / TIMINGS).write_text(good)
    assert read_turns(tmp_path, "abc") == turns
    for times in ('["a"]', "[NaN]", "[Infinity]", "[1e999]", "[-5.0]", "[true]", "5", '"xx"', "null", "[" * 100_000):
        name = next(iter(turns))
        told = {**turns, name: {**turns[name], "step": "HERE"}}
        (tmp_path / TIMINGS).write_text(json.dumps({"study": "abc", "arms": told}).replace('"HERE"', times))
        assert read_turns(tmp_path, "abc") is None, times
    clock = Clock.of(turns["full"])
    assert clock is not None
    assert clock.step == Spread(2.0, 1.5, 2.5, 3)
    assert clock.base is None
    assert Clock.of(None) is None
