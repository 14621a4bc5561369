"""The paired differences of several studies, one group for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from surgery.report.across import Across
from surgery.report.palette import GRID, INK, looks
from surgery.report.plots.difference import directions, draw_row, reach, told
from surgery.report.plots.drawing import Drawing, Picture, plain, wrapped
from surgery.study import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["forest"]

Place: TypeAlias = tuple[float, Comparison, Row]


def forest(found: Across, table: str) -> Drawing | None:
    """Return the forest plot of every arm of every study against its own reference; None where none was measured.

    Args:
        found: the studies.
        table: name of the CSV file that holds the numbers, without `.csv`.
    """
    heads, places, bottom = _places(found)
    if not places:
        return None
    unit = found.unit
    spoken = "; ".join(f"{one.summary.name}, {row.label}: {told(row, unit)} {unit.name}" for _, one, row in places)

    def draw(axes: Axes) -> None:
        ends = _ends(found, [row for _, _, row in places])
        for top, end, name, one in heads:
            margin = one.summary.margin * unit.scale
            axes.fill_betweenx([top + 0.25, end], -margin, margin, color=GRID, alpha=0.55, linewidth=0)
            axes.plot([0, 0], [top + 0.25, end], color=INK, linewidth=0.9)
            reference = one.summary.row(one.summary.reference).label
            text = f"{plain(name)}, against {plain(reference)}"
            axes.annotate(text, (0.0, top), xycoords=("axes fraction", "data"), fontsize=8.6, fontweight="bold",
                          va="center", annotation_clip=False)  # fmt: skip
        for place, one, row in places:
            draw_row(axes, place, row, looks(one)[row.arm], unit, ends)
        axes.set_xlim(*ends)
        axes.set_ylim(bottom, -0.5)
        axes.set_yticks([place for place, _, _ in places], [wrapped(row.label) for _, _, row in places])
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        directions(axes, found.greater_is_better)
        axes.set_xlabel(f"{found.metric} minus the reference's{f' [{unit.name}]' if unit.name else ''}")

    sizes = "; ".join(f"{name}: S = {len(one.summary.seeds)}, n = {one.summary.items:,}" for name, one in found.studies)
    return Drawing(
        "forest",
        f"Difference in {found.metric} to each study's reference",
        "Thick: 90 % interval, thin: 95 %, paired by seed and item. Shaded: each study's margin. Filled: a verdict, "
        f"half filled: an indicative one, hollow: unresolved. {sizes}.",
        (table,),
        (Picture("", spoken, draw),),
        height=1.2 + 0.5 * bottom,
    )


def _places(found: Across) -> tuple[list[tuple[float, float, str, Comparison]], list[Place], float]:
    """Return (heading, end, name, study) of every group, the place of every row, and where the axis ends."""
    heads, places, y = [], [], 0.0
    for name, one in found.studies:
        rows = [row for row in one.summary.rows if row.kind == "arm" and row.pair is not None]
        if rows:
            heads.append((y, y + len(rows) + 0.2, name, one))
            places += [(y + 0.7 + index, one, row) for index, row in enumerate(rows)]
            y += len(rows) + 0.75
    return heads, places, y - 0.4


def _ends(found: Across, rows: Sequence[Row]) -> tuple[float, float]:
    widest = max(one.summary.margin for _, one in found.studies) * found.unit.scale
    return reach(rows, found.unit, widest)
