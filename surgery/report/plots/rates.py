"""How sensitive each arm is to its learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.report.numbers import rate
from surgery.report.palette import SURFACE
from surgery.report.plots.drawing import Drawing, Looks, plain
from surgery.study import Comparison
from surgery.study.choose import Choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["learning_rates"]


def learning_rates(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return validation loss over the learning rate, one line for each arm that was swept."""
    summary = comparison.summary
    swept = [choice for choice in summary.choices if choice.swept]
    if not swept:
        return None
    spoken = "; ".join(f"{summary.row(choice.arm).label}: best at {rate(choice.rate)}" for choice in swept)
    finite = [loss for choice in swept for loss in choice.losses if loss is not None]
    worst = max(finite)

    def draw(axes: Axes) -> None:
        for choice in swept:
            _line(axes, choice, looks, plain(summary.row(choice.arm).label), worst)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("validation loss [nats]")
        axes.legend(loc="best")

    return Drawing(
        "rates",
        "Choosing learning rates",
        f"Validation loss at the end of training on the tuning seed ({comparison.study.tuning_seed}), which reports "
        "nothing. Ringed: chosen; hollow: the end of a grid; crossed: diverged. S = 1 seed.",
        spoken,
        draw,
    )


def _line(axes: Axes, choice: Choice, looks: Looks, label: str, worst: float) -> None:
    look = looks[choice.arm]
    points = [(x, y) for x, y in zip(choice.grid, choice.losses, strict=True) if y is not None]
    lost = [x for x, y in zip(choice.grid, choice.losses, strict=True) if y is None]
    axes.plot(*zip(*points, strict=True), color=look.colour, label=label)
    for x, y in points:
        hollow = x in (choice.grid[0], choice.grid[-1])
        face = SURFACE if hollow else look.colour
        axes.plot([x], [y], look.marker, color=look.colour, markerfacecolor=face, markersize=6)
        if x == choice.rate:
            axes.plot([x], [y], "o", color=look.colour, markerfacecolor="none", markersize=13, markeredgewidth=1.2)
    axes.plot(lost, [worst] * len(lost), "x", color=look.colour, markersize=7)
