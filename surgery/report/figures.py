"""The figures of a report, in the order a reader asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.report.canvas import canvas, svg_of
from surgery.report.palette import looks
from surgery.report.plots.cost import memory, step_time
from surgery.report.plots.curves import loss_curves
from surgery.report.plots.difference import differences
from surgery.report.plots.forgetting import learning_and_forgetting
from surgery.report.plots.parameters import metric_and_parameters
from surgery.report.plots.rates import learning_rates
from surgery.study import Comparison

__all__ = ["Figure", "figures"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure on the page: its anchor, title, caption (how to read it, with n and S) and drawing."""

    name: str
    title: str
    caption: str
    svg: str


def figures(comparison: Comparison) -> tuple[Figure, ...]:
    """Return every figure that the study has numbers for."""
    found = []
    colours = looks(comparison.summary)
    for plot in (
        differences,
        loss_curves,
        metric_and_parameters,
        memory,
        step_time,
        learning_rates,
        learning_and_forgetting,
    ):
        drawing = plot(comparison, colours)
        if drawing is not None:
            with canvas(drawing.width, drawing.height) as (figure, axes):
                drawing.draw(axes)
                svg = svg_of(figure, drawing.name, f"{drawing.title}. {drawing.spoken}")
            found.append(Figure(drawing.name, drawing.title, drawing.caption, svg))
    return tuple(found)
