"""The paired differences with the margin shaded: the one figure that answers the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgery.report.palette import GRID, INK, MUTED, SURFACE, Look
from surgery.report.plots.drawing import Drawing, Looks, Picture, plain, sample, wrapped
from surgery.study import Comparison, Row
from surgery.study.words import Unit, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MARKS", "differences", "directions", "draw_row", "reach"]

MARKS = {"better": "\N{BLACK UP-POINTING TRIANGLE}", "worse": "\N{BLACK DOWN-POINTING TRIANGLE}",
         "equivalent": "\N{ALMOST EQUAL TO}", "unresolved": "?"}  # fmt: skip
"""Verdict -> the sign that stands before it, on the page and in plots."""


def differences(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return the forest plot of every measured arm against the reference."""
    summary = comparison.summary
    rows = [row for row in summary.rows if row.pair is not None and row.kind in ("arm", "frozen")]
    rows.sort(key=lambda row: row.kind == "frozen")
    if not rows:
        return None
    unit = unit_of(summary.metric["name"])
    reference = summary.row(summary.reference).label
    greater = summary.metric["greater_is_better"]
    spoken = "; ".join(f"{row.label}: {told(row, unit)} {unit.name}, {_word(row)}" for row in rows)

    def draw(axes: Axes) -> None:
        near = [row for row in rows if row.kind == "arm"] or rows
        margin = summary.margin * unit.scale
        limits = reach(near, unit, margin)
        axes.axvspan(-margin, margin, color=GRID, alpha=0.55, linewidth=0)
        axes.axvline(0, color=INK, linewidth=0.9)
        for place, row in enumerate(rows):
            draw_row(axes, place, row, looks[row.arm], unit, limits)
        axes.set_xlim(*limits)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_yticks(range(len(rows)), [wrapped(row.label) for row in rows])
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        directions(axes, greater)
        name = f" [{unit.name}]" if unit.name else ""
        axes.set_xlabel(f"{summary.metric['name']} minus that of {plain(reference)}{name}")

    return Drawing(
        "difference",
        f"Difference to {reference}",
        "Thick: 90 % interval, thin: 95 %, paired by seed and item. Shaded: the margin, "
        f"±{unit.margin(summary.margin)}, inside which a difference does not matter; equivalent: the thick line lies "
        "inside. Filled: a verdict, half filled: an indicative one, hollow: unresolved. An arrow at an edge: farther "
        f"out. {sample(summary)}",
        ("arms",),
        (Picture("", spoken, draw),),
        height=1.35 + 0.52 * len(rows),
    )


def told(row: Row, unit: Unit, between: str = " ") -> str:
    """Return the difference and its interval."""
    assert row.pair is not None
    assert row.interval is not None
    return f"{unit.signed(row.pair.difference)}{between}{unit.interval(row.interval)}"


def reach(rows: Sequence[Row], unit: Unit, margin: float) -> tuple[float, float]:
    """Return the limits of an axis that holds the intervals of `rows` and the whole margin."""
    ends = [end * unit.scale for row in rows if row.interval for end in (row.interval.low, row.interval.high)]
    low, high = min(*ends, -1.6 * margin), max(*ends, 1.6 * margin)
    pad = 0.05 * (high - low)
    return low - pad, high + pad


def directions(axes: Axes, greater_is_better: bool) -> None:
    """Write above the axes which side is better."""
    words = ("worse", "better") if greater_is_better else ("better", "worse")
    left, right = f"\N{LEFTWARDS ARROW} {words[0]}", f"{words[1]} \N{RIGHTWARDS ARROW}"
    for x, side, text in ((0.0, "left", left), (1.0, "right", right)):
        axes.text(x, 1.02, text, transform=axes.transAxes, ha=side, va="bottom", fontsize=9, fontweight="bold")


def draw_row(axes: Axes, place: float, row: Row, look: Look, unit: Unit, limits: tuple[float, float]) -> None:
    """Draw the intervals of one row, its marker, and its words at the right."""
    assert row.pair is not None
    assert row.interval is not None
    assert row.narrow is not None
    (left, right), middle = limits, row.pair.difference * unit.scale
    if left <= middle <= right:
        for interval, width in ((row.interval, 1.3), (row.narrow, 4.2)):
            ends = [min(max(end * unit.scale, left), right) for end in (interval.low, interval.high)]
            axes.plot(ends, [place, place], color=look.colour, linewidth=width, solid_capstyle="butt")
        _marker(axes, middle, place, row, look)
    else:
        # Far away: an arrow at the edge, so that one hopeless row does not flatten all others.
        inwards = 0.03 * (right - left)
        edge, sign = (left + inwards, "<") if middle < left else (right - inwards, ">")
        axes.plot([edge], [place], sign, color=look.colour, markersize=7)
    axes.annotate(
        f"{_word(row)}\n{told(row, unit)}",
        (1.03, place),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8.2,
        color=INK if row.kind == "arm" else MUTED,
    )


def _marker(axes: Axes, x: float, y: float, row: Row, look: Look) -> None:
    verdict = row.verdict
    is_open = verdict is None or verdict.word == "unresolved"
    half = {"fillstyle": "left", "markerfacecoloralt": SURFACE} if verdict and verdict.indicative else {}
    marker = "o" if look.marker in ("x", "d") else look.marker
    axes.plot(
        [x],
        [y],
        marker,
        color=look.colour,
        markersize=8,
        markeredgewidth=1.4,
        markerfacecolor=SURFACE if is_open else look.colour,
        markeredgecolor=look.colour,
        **half,  # type: ignore[arg-type]
    )


def _word(row: Row) -> str:
    if row.verdict is None:
        return ""
    tail = ", indicative" if row.verdict.indicative else ""
    return f"{MARKS[row.verdict.word]} {row.verdict.word}{tail}"
