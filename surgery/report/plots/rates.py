"""How sensitive each arm is to its learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.report.numbers import rate
from surgery.report.palette import SURFACE, Look
from surgery.report.plots.drawing import Drawing, Looks, Picture, legend, log_axis, plain
from surgery.study import Comparison
from surgery.study.choose import Choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["learning_rates"]


def learning_rates(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return validation loss over the learning rate, one line for each arm that was swept, all on one axis."""
    summary = comparison.summary
    swept = [choice for choice in summary.choices if choice.swept]
    if not swept:
        return None
    spoken = "; ".join(f"{summary.row(choice.arm).label}: best at {rate(choice.rate)}" for choice in swept)
    top = _top(swept)
    lost = any(loss is None or loss > top for choice in swept for loss in choice.losses)

    def draw(axes: Axes) -> None:
        for choice in swept:
            _line(axes, choice, looks[choice.arm], plain(summary.row(choice.arm).label), top)
        rates = [rate for choice in swept for rate in choice.grid]
        log_axis(axes, rate, "learning rate", min(rates), max(rates), "rates")
        axes.set_ylabel("validation loss [nats]")
        if lost:
            low, _ = axes.get_ylim()
            axes.set_ylim(low, top + 0.06 * (top - low))
        legend(axes)

    others = [summary.row(choice.arm).label for choice in summary.choices if not choice.swept]
    unswept = f" Not swept, and not here: {', '.join(others)}." if others else ""
    clipped = (
        " Crossed at the top edge: diverged; triangles there: farther up, at the loss that is written." if lost else ""
    )
    return Drawing(
        "rates",
        "Choosing learning rates",
        f"Validation loss at the end of training on the tuning seed ({comparison.study.tuning_seed}), which reports "
        f"nothing. Ringed: chosen; hollow: an end of a grid, beyond which nothing was tried.{clipped}{unswept} "
        "S = 1 seed.",
        ("learning_rates",),
        (Picture("", spoken, draw),),
        height=3.6,
    )


def _top(swept: list[Choice]) -> float:
    """Return the loss at which the axis ends: one hopeless rate must not flatten every curve."""
    finite = sorted(loss for choice in swept for loss in choice.losses if loss is not None)
    best = [sorted(loss for loss in choice.losses if loss is not None)[:2] for choice in swept]
    near = max(losses[-1] for losses in best)  # each arm's second best stays in sight
    return min(finite[-1], near + 1.5 * (near - finite[0])) if near > finite[0] else finite[-1]


def _line(axes: Axes, choice: Choice, look: Look, label: str, top: float) -> None:
    points = list(zip(choice.grid, choice.losses, strict=True))
    shown = [(x, min(y, top)) for x, y in points if y is not None]
    axes.plot(*zip(*shown, strict=True), color=look.colour, linestyle=look.dash, linewidth=1.4)
    axes.plot([], [], color=look.colour, linestyle=look.dash, marker=look.marker, markersize=6, label=label)
    for x, y in points:
        if y is None:
            axes.plot([x], [top], "x", color=look.colour, markersize=9, markeredgewidth=2, clip_on=False)
        elif y > top:
            axes.plot([x], [top], "^", color=look.colour, markersize=8, clip_on=False)
            axes.annotate(
                f"{y:.3g} \N{UPWARDS ARROW}",
                (x, top),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        else:
            face = SURFACE if x in (choice.grid[0], choice.grid[-1]) else look.colour
            axes.plot([x], [y], look.marker, color=look.colour, markerfacecolor=face, markersize=6.5)
        if x == choice.rate and y is not None:
            axes.plot(
                [x], [min(y, top)], "o", color=look.colour, markerfacecolor="none", markersize=14, markeredgewidth=1.3
            )
