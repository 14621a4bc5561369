"""The figures of a report, in the order a reader asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.report.canvas import canvas, svg_of
from surgery.report.palette import looks
from surgery.report.plots.cost import memory, step_time
from surgery.report.plots.curves import loss_curves
from surgery.report.plots.difference import differences
from surgery.report.plots.drawing import Drawing
from surgery.report.plots.forgetting import learning_and_forgetting
from surgery.report.plots.layers import entropy_ranks, relative_norms
from surgery.report.plots.overlaps import subspaces
from surgery.report.plots.rates import learning_rates
from surgery.report.plots.spectra import spectra
from surgery.report.plots.tradeoff import pareto
from surgery.study import Comparison

__all__ = ["ANSWER", "Figure", "drawings", "figure_of", "figures"]

ANSWER = "difference"
"""The name of the figure that answers the question; it stands beside the verdicts."""

_PLOTS = (
    differences,
    learning_rates,
    loss_curves,
    pareto,
    memory,
    step_time,
    learning_and_forgetting,
    relative_norms,
    entropy_ranks,
    spectra,
    subspaces,
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure on the page.

    Attributes:
        name: its anchor.
        title, caption: what it shows and how to read it, with n and S.
        tables: names of the tables that hold its numbers.
        views: (label of the button, drawing), one or more; a single one has no label.
    """

    name: str
    title: str
    caption: str
    tables: tuple[str, ...]
    views: tuple[tuple[str, str], ...]


def drawings(comparison: Comparison) -> tuple[Drawing, ...]:
    """Return every plot that the study has numbers for, before it is drawn."""
    colours = looks(comparison)
    return tuple(drawing for plot in _PLOTS if (drawing := plot(comparison, colours)) is not None)


def figures(comparison: Comparison) -> tuple[Figure, ...]:
    """Return every figure that the study has numbers for."""
    return tuple(figure_of(drawing) for drawing in drawings(comparison))


def figure_of(drawing: Drawing) -> Figure:
    """Draw every view of a plot."""
    views = []
    for index, picture in enumerate(drawing.views):
        name = drawing.name if index == 0 else f"{drawing.name}-{index + 1}"
        title = f"{drawing.title}{f': {picture.label}' if picture.label else ''}"
        with canvas(drawing.width, drawing.height) as (figure, axes):
            picture.draw(axes)
            views.append((picture.label, svg_of(figure, name, title, picture.spoken)))
    return Figure(drawing.name, drawing.title, drawing.caption, drawing.tables, tuple(views))
