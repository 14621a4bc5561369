"""The metric against what an arm takes: trainable parameters, bytes, seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.report.numbers import short, size
from surgery.report.palette import INK, MUTED, SURFACE
from surgery.report.plots.drawing import Drawing, Looks, Picture, legend, level_axis, log_axis, plain, sample
from surgery.study import Comparison, Row, Summary
from surgery.study.tradeoff import AXES, Tradeoff, tradeoffs
from surgery.study.words import Unit, unit_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

__all__ = ["pareto"]

_BUTTONS = {"parameters": "parameters", "checkpoint_bytes": "bytes", "seconds": "seconds"}


def pareto(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return the test metric over what arms take, with the reference and the frozen row as bands."""
    summary = comparison.summary
    unit = unit_of(summary.metric["name"])
    found = tradeoffs(summary, comparison.records)
    views = []
    for axis in AXES:
        points = [point for point in found if point.axis == axis]
        if len(points) > 1:
            views.append(Picture(_BUTTONS[axis], _spoken(summary, points, unit), _drawn(summary, points, looks, axis)))
    if not views:
        return None
    level = next((row for row in summary.rows if row.kind == "frozen" and row.test), None)
    frozen = f", dashed: {level.label}" if level else ""
    return Drawing(
        "tradeoff",
        f"Test {summary.metric['name']} against what it takes",
        f"Mean and 95 % interval over seeds. Levels: solid: {summary.row(summary.reference).label}{frozen}, with their "
        f"intervals. Dotted steps: the Pareto front. Seconds are {'CPU time, ' if summary.clock == 'cpu' else ''}"
        f"the median step times steps. {sample(summary)}",
        ("tradeoffs", "arms"),
        tuple(views),
    )


def _spoken(summary: Summary, points: list[Tradeoff], unit: Unit) -> str:
    told = (f"{summary.row(p.arm).label}: {short(p.amount)}, {unit.value(p.test)}" for p in points)
    return f"By {AXES[points[0].axis]}: {'; '.join(told)}"


def _drawn(summary: Summary, points: list[Tradeoff], looks: Looks, axis: str) -> Callable[[Axes], None]:
    unit = unit_of(summary.metric["name"])
    bands = [row for row in summary.rows if row.kind in ("reference", "frozen") and row.test]

    def draw(axes: Axes) -> None:
        for row in bands:
            _band(axes, row, unit.scale)
        front = [(point.amount, point.test * unit.scale) for point in points if point.on_front]
        axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1.4, linestyle=":", drawstyle="steps-post")
        for point in points:
            look, y = looks[point.arm], point.test * unit.scale
            if point.low is not None and point.high is not None:
                axes.plot([point.amount] * 2, [point.low * unit.scale, point.high * unit.scale], color=look.colour,
                          linewidth=1.5)  # fmt: skip
            axes.plot([point.amount], [y], look.marker, color=look.colour, markersize=8, markeredgecolor=SURFACE,
                      linestyle="none", label=plain(summary.row(point.arm).label))  # fmt: skip
        amounts = [point.amount for point in points]
        if axis == "seconds":  # within one order of magnitude: the distances are the message
            axes.set_xlim(0, max(amounts) * 1.12)
            axes.set_xlabel(f"{'CPU ' if summary.clock == 'cpu' else ''}{AXES[axis]}")
        else:
            told, kind = (short, "decimal") if axis == "parameters" else (_bytes, "binary")
            log_axis(axes, told, AXES[axis], min(amounts), max(amounts), kind)
        axes.margins(y=0.1)
        axes.set_ylabel(level_axis(summary.metric["name"], unit.name))
        legend(axes)

    return draw


def _bytes(value: float) -> str:
    return size(int(value)).replace(".0 ", " ")


def _band(axes: Axes, row: Row, scale: float) -> None:
    assert row.test is not None
    colour, dash = (INK, "-") if row.kind == "reference" else (MUTED, "--")
    if row.test.interval is not None:
        interval = row.test.interval
        axes.axhspan(interval.low * scale, interval.high * scale, color=colour, alpha=0.09, linewidth=0)
    axes.axhline(row.test.mean * scale, color=colour, linestyle=dash, linewidth=0.9)
