"""The metric against how much is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.report.palette import GRID, INK, MUTED, SURFACE
from surgery.report.plots.drawing import Drawing, Looks, plain, sample
from surgery.study import Comparison, Row
from surgery.study.words import unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["metric_and_parameters"]


def metric_and_parameters(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return the test metric over trainable parameters, with the reference and the frozen row as levels."""
    summary = comparison.summary
    rows = [row for row in summary.rows if row.test and row.adapter is not None and _trainable(row) > 0]
    if not rows:
        return None
    unit = unit_of(summary.metric["name"])
    level = next((row for row in summary.rows if row.kind == "frozen" and row.test), None)
    reference = summary.row(summary.reference)
    spoken = "; ".join(f"{row.label}: {_trainable(row):,} parameters, {unit.value(_mean(row))}" for row in rows)

    def draw(axes: Axes) -> None:
        for row, dash in ((reference, "-"), (level, "--")):
            if row is not None and row.test is not None:
                axes.axhline(
                    _mean(row) * unit.scale, color=INK if row is reference else MUTED, linestyle=dash, linewidth=0.8
                )
        _front(axes, rows, unit.scale, summary.metric["greater_is_better"])
        for row in rows:
            _point(axes, row, looks, unit.scale)
        axes.set_xscale("log")
        axes.margins(x=0.1, y=0.1)
        axes.legend(loc="best")
        axes.set_xlabel("trainable parameters, head included")
        axes.set_ylabel(f"test {summary.metric['name']}{f' [{_axis_unit(unit.name)}]' if unit.name else ''}")

    return Drawing(
        "parameters",
        f"Test {summary.metric['name']} against trainable parameters",
        f"Mean and 95 % interval over seeds; solid line: the reference, dashed: {level.label if level else 'frozen'}, "
        f"grey steps: the Pareto front. {sample(summary)}",
        spoken,
        draw,
    )


def _axis_unit(name: str) -> str:
    # Differences are points; levels are per cent.
    return "%" if name == "pt" else name


def _trainable(row: Row) -> int:
    return (row.adapter or 0) + (row.head or 0)


def _mean(row: Row) -> float:
    assert row.test is not None
    return row.test.mean


def _front(axes: Axes, rows: list[Row], scale: float, greater_is_better: bool) -> None:
    sign = 1 if greater_is_better else -1
    best: list[tuple[float, float]] = []
    for row in sorted(rows, key=_trainable):
        if not best or sign * _mean(row) * scale > sign * best[-1][1]:
            best.append((_trainable(row), _mean(row) * scale))
    axes.plot(*zip(*best, strict=True), color=GRID, linewidth=2.2, drawstyle="steps-post", zorder=1)


def _point(axes: Axes, row: Row, looks: Looks, scale: float) -> None:
    look, estimate = looks[row.arm], row.test
    assert estimate is not None
    if estimate.interval is not None:
        ends = [estimate.interval.low * scale, estimate.interval.high * scale]
        axes.plot([_trainable(row)] * 2, ends, color=look.colour, linewidth=1.4)
    axes.plot(
        [_trainable(row)],
        [estimate.mean * scale],
        look.marker,
        color=look.colour,
        markersize=7,
        markeredgecolor=SURFACE,
        label=plain(row.label),
    )
