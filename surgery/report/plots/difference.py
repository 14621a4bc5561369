"""The paired differences with the margin shaded: the one figure that answers the question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.report.palette import GRID, INK, MUTED, SURFACE
from surgery.report.plots.drawing import Drawing, Looks, plain, sample, wrapped
from surgery.study import Comparison, Row
from surgery.study.words import Unit, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["differences"]


def differences(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return the forest plot of every measured arm against the reference."""
    summary = comparison.summary
    rows = [row for row in summary.rows if row.pair is not None and row.kind in ("arm", "frozen")]
    rows.sort(key=lambda row: row.kind == "frozen")
    if not rows:
        return None
    unit = unit_of(summary.metric["name"])
    reference = summary.row(summary.reference).label
    better = "Right of zero is better" if summary.metric["greater_is_better"] else "Left of zero is better"
    spoken = "; ".join(f"{row.label}: {_told(row, unit)} {unit.name}" for row in rows)

    def draw(axes: Axes) -> None:
        _draw(axes, rows, looks, unit, summary.margin)
        axes.set_xlabel(
            f"{summary.metric['name']}, difference to {plain(reference)}{f' [{unit.name}]' if unit.name else ''}"
        )

    return Drawing(
        "difference",
        f"Paired difference to {reference}",
        f"Thick: 90 % interval, thin: 95 % interval. Shaded: the margin of ±{unit.margin(summary.margin)} inside which "
        f"a difference does not matter; equivalent means the thick line lies inside. {better}. {sample(summary)}",
        spoken,
        draw,
        height=1.2 + 0.5 * len(rows),
    )


def _told(row: Row, unit: Unit, between: str = " ") -> str:
    assert row.pair is not None
    assert row.interval is not None
    return f"{unit.signed(row.pair.difference)}{between}{unit.interval(row.interval)}"


def _draw(axes: Axes, rows: list[Row], looks: Looks, unit: Unit, margin: float) -> None:
    left, right = _range(rows, unit, margin)
    axes.axvspan(-margin * unit.scale, margin * unit.scale, color=GRID, alpha=0.55, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.9)
    for place, row in enumerate(rows):
        assert row.pair is not None
        assert row.interval is not None
        assert row.narrow is not None
        look, middle = looks[row.arm], row.pair.difference * unit.scale
        if left <= middle <= right:
            for interval, width in ((row.interval, 1.3), (row.narrow, 4.2)):
                ends = [min(max(end * unit.scale, left), right) for end in (interval.low, interval.high)]
                axes.plot(ends, [place, place], color=look.colour, linewidth=width, solid_capstyle="butt")
            axes.plot([middle], [place], look.marker, color=look.colour, markersize=7, markeredgecolor=SURFACE)
        else:
            # Far away: an arrow at the edge, so that one hopeless row does not flatten all others.
            inwards = 0.03 * (right - left)
            edge, sign = (left + inwards, "<") if middle < left else (right - inwards, ">")
            axes.plot([edge], [place], sign, color=look.colour, markersize=7)
        axes.annotate(
            _told(row, unit, "\n"),
            (1.03, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            color=INK if row.kind == "arm" else MUTED,
        )
    axes.set_xlim(left, right)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_yticks(range(len(rows)), [wrapped(row.label) for row in rows])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def _range(rows: list[Row], unit: Unit, margin: float) -> tuple[float, float]:
    near = [row for row in rows if row.kind == "arm"] or rows
    ends = [end * unit.scale for row in near if row.interval for end in (row.interval.low, row.interval.high)]
    reach = margin * unit.scale * 1.6
    low, high = min(*ends, -reach), max(*ends, reach)
    pad = 0.05 * (high - low)
    return low - pad, high + pad
