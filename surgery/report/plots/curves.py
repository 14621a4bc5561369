"""Validation loss while training, with a band over seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.report.numbers import work
from surgery.report.plots.drawing import Drawing, Looks, Picture, legend, log_axis, plain, sample
from surgery.study import Comparison
from surgery.study.curves import FEW_SEEDS, CurveMean, mean_curves

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

__all__ = ["loss_curves"]


def loss_curves(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return one line for each trained arm, against steps, work and seconds."""
    summary = comparison.summary
    # What no step has changed yet is the same in every arm, and a logarithm has no place for it.
    found = [point for point in mean_curves(summary, comparison.records) if point.step > 0]
    by_arm: dict[str, list[CurveMean]] = {}
    for point in found:
        by_arm.setdefault(point.arm, []).append(point)
    lines = {summary.row(arm).label: points for arm, points in by_arm.items() if len(points) > 1}
    if not lines:
        return None
    time = "CPU seconds" if summary.clock == "cpu" else "seconds"
    axes_of = {"step": ("steps", "optimizer steps"), "flops": ("FLOPs", "floating-point operations"),
               "seconds": (time, f"{time} of training steps")}  # fmt: skip
    ends = "; ".join(f"{label} ends at {points[-1].validation_loss_nats:.3f} nats" for label, points in lines.items())
    views = []
    for axis, (button, title) in axes_of.items():
        if all(getattr(point, axis) for points in lines.values() for point in points):
            views.append(Picture(button, f"Against {title}: {ends}", _drawn(lines, looks, axis, title)))
    seeds = len(summary.seeds)
    band = "" if seeds == 1 else f"Band: {'range' if seeds < FEW_SEEDS else '95 % interval of the mean'} over seeds. "
    costs = " Work: that of the first batch, times steps. Time: the median step, times steps." if views[1:] else ""
    return Drawing(
        "curves",
        "Validation loss while training",
        f"Mean over seeds, at the chosen learning rates. {band}{sample(summary, items=False)}{costs}",
        ("loss_curves",),
        tuple(views),
    )


def _drawn(lines: dict[str, list[CurveMean]], looks: Looks, axis: str, title: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        places = [float(getattr(point, axis)) for points in lines.values() for point in points]
        for label, points in lines.items():
            look = looks[points[0].arm]
            x = [getattr(point, axis) for point in points]
            low, high = [point.low for point in points], [point.high for point in points]
            axes.fill_between(x, low, high, color=look.colour, alpha=0.16, linewidth=0)
            y = [point.validation_loss_nats for point in points]
            axes.plot(x, y, color=look.colour, linestyle=look.dash, label=plain(label))
        log_axis(axes, work if axis == "flops" else (lambda value: f"{value:,.4g}"), title, min(places), max(places))
        axes.set_ylabel("validation loss [nats]")
        legend(axes)

    return draw
