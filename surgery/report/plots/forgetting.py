"""What was learned against what was forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.report.palette import MUTED, SURFACE
from surgery.report.plots.drawing import Drawing, Looks, Picture, legend, level_axis, plain, sample
from surgery.study import Comparison, Row
from surgery.study.forgetting.paths import PathMean, forgetting_paths
from surgery.study.statistics import Estimate
from surgery.study.words import Unit, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["learning_and_forgetting"]


def learning_and_forgetting(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return the test metric over the rise of the loss on known text, where that was measured."""
    summary = comparison.summary
    rows = [row for row in summary.rows if row.forgetting is not None and row.test is not None]
    if not any(row.kind in ("arm", "reference") for row in rows):
        return None
    unit = unit_of(summary.metric["name"])
    spoken = "; ".join(f"{row.label}: {_of(row.forgetting).mean:+.3f} {summary.probe_unit}" for row in rows)
    paths: dict[str, list[PathMean]] = {}
    for point in forgetting_paths(summary):
        if summary.row(point.arm).kind in ("arm", "reference"):
            paths.setdefault(point.arm, []).append(point)

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=MUTED, linewidth=0.9)
        for arm, points in paths.items():
            _path(axes, arm, points, looks, unit)
        for row in rows:
            _point(axes, row, looks, unit)
        axes.margins(0.1)
        legend(axes)
        fall = "rise of the loss on text that the base knows" if summary.probe_unit == "nats" else "what is forgotten"
        axes.set_xlabel(f"{fall} [{summary.probe_unit}]")
        axes.set_ylabel(level_axis(summary.metric["name"], unit.name))

    better = "Up" if summary.metric["greater_is_better"] else "Down"
    way = ""
    if paths:
        way = (
            " Markers: the end, on the test split. Thin lines: the way there, W0 + t (W - W0), on validation examples,"
            " with a dot at each t."
        )
    unequal = "" if paths else " Arms that learned different amounts are not compared at equal learning here."
    return Drawing(
        "forgetting",
        "Learning against forgetting",
        f"{better} is learning, right is forgetting; mean and 95 % interval over seeds.{way}{unequal} "
        f"{sample(summary)}",
        ("arms", *(("forgetting_paths",) if paths else ())),
        (Picture("", spoken, draw),),
    )


def _of(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


def _path(axes: Axes, arm: str, points: list[PathMean], looks: Looks, unit: Unit) -> None:
    x, y = [point.forgotten for point in points], [point.learned * unit.scale for point in points]
    axes.plot(x, y, color=looks[arm].colour, linewidth=1.1, marker=".", markersize=7)


def _point(axes: Axes, row: Row, looks: Looks, unit: Unit) -> None:
    look, known, test = looks[row.arm], _of(row.forgetting), _of(row.test)
    x, y = known.mean, test.mean * unit.scale
    if known.interval is not None:
        axes.plot([known.interval.low, known.interval.high], [y, y], color=look.colour, linewidth=1.3)
    if test.interval is not None:
        ends = [test.interval.low * unit.scale, test.interval.high * unit.scale]
        axes.plot([x, x], ends, color=look.colour, linewidth=1.3)
    axes.plot([x], [y], look.marker, color=look.colour, markersize=8, markeredgecolor=SURFACE, linestyle="none",
              label=plain(row.label))  # fmt: skip
