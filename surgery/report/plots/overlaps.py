"""How far arms and seeds changed the same directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.report.palette import INK, MUTED, SURFACE
from surgery.report.plots.drawing import Drawing, Looks, Picture, legend, wrapped
from surgery.study import Comparison
from surgery.study.overlaps import COUNT, SubspaceOverlap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["subspaces"]


def subspaces(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return a row of dots for every pair of runs whose directions were compared; None where none were."""
    found = comparison.summary.overlaps
    if not found:
        return None
    spoken = "; ".join(
        f"{_pair(comparison, one, ' ')}: {one.input:.2f}, random {one.random_input:.2f}" for one in found
    )

    def draw(axes: Axes) -> None:
        for place, one in enumerate(found):
            look = looks[one.first]
            for value, face, up in ((one.output, SURFACE, -0.13), (one.input, look.colour, 0.13)):
                axes.plot([value], [place + up], "o", color=look.colour, markerfacecolor=face, markersize=7)
            for value, up in ((one.random_output, -0.13), (one.random_input, 0.13)):
                axes.plot([value], [place + up], "x", color=MUTED, markersize=6, markeredgewidth=1.6)
        for name, marker, face in (("output", "o", SURFACE), ("input", "o", INK), ("random", "x", MUTED)):
            axes.plot([], [], marker, color=MUTED if marker == "x" else INK, markerfacecolor=face, label=name)
        most = max(max(one.output, one.input, one.random_output, one.random_input) for one in found)
        axes.set_xlim(0, min(1.02, max(0.1, 1.15 * most)))
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_yticks(range(len(found)), [wrapped(_pair(comparison, one, " "), 24) for one in found])
        axes.set_xlabel("overlap (1: the same subspace)")
        axes.grid(visible=False, axis="y")
        legend(axes)

    seeds = len({seed for one in found for seed in (one.first_seed, one.second_seed)})
    return Drawing(
        "overlaps",
        "Do they change the same directions?",
        f"Overlap of the first {COUNT} singular directions of dW (fewer where its rank is lower), the median over "
        f"matrices that both changed. Crosses: with random directions. S = {seeds} seed{'s' if seeds > 1 else ''}.",
        ("overlaps",),
        (Picture("", spoken, draw),),
        height=1.1 + 0.5 * len(found),
    )


def _pair(comparison: Comparison, one: SubspaceOverlap, between: str) -> str:
    first = comparison.summary.row(one.first).label
    if one.first == one.second:
        return f"{first}:{between}seeds {one.first_seed}, {one.second_seed}"
    return f"{first} and{between}{comparison.summary.row(one.second).label}"
