"""Singular values of what changed, beside those of random changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.report.palette import INK
from surgery.report.plots.drawing import Drawing, Looks, Picture, legend, log_height, plain
from surgery.study import Comparison
from surgery.study.layers import SingularValue, singular_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

__all__ = ["spectra"]


def spectra(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return singular values of dW, one line for each arm, of up to three matrices; None where none were kept."""
    found = singular_values(comparison.records)
    if not found:
        return None
    views = []
    for name in dict.fromkeys(value.matrix for value in found):
        own = [value for value in found if value.matrix == name]
        button = name if own[0].layer is None else f"layer {own[0].layer}"
        tops = "; ".join(f"{_label(comparison, v.arm)}: largest {v.value:.3g}" for v in own if v.index == 1)
        views.append(Picture(button, f"{name}: {tops}", _drawn(comparison, own, looks)))
    count = max(value.index for value in found)
    return Drawing(
        "spectra",
        f"Singular values of the change of {found[0].role}",
        f"The {count} largest of dW in {', '.join(dict.fromkeys(value.matrix for value in found))}. Dashed: a random "
        "change of the same norm, and of the same rank where that is low: a line that falls no faster says nothing "
        f"about training. S = 1 seed ({', '.join(sorted({str(value.seed) for value in found}))}).",
        ("singular_values",),
        tuple(views),
    )


def _label(comparison: Comparison, arm: str) -> str:
    return comparison.summary.row(arm).label


def _drawn(comparison: Comparison, own: list[SingularValue], looks: Looks) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for arm in dict.fromkeys(value.arm for value in own):
            line, look = [value for value in own if value.arm == arm and value.value > 0], looks[arm]
            places = [value.index for value in line]
            axes.plot(places, [value.value for value in line], color=look.colour, marker=look.marker, markersize=3.5,
                      linewidth=1.4, label=plain(_label(comparison, arm)))  # fmt: skip
            axes.plot(places, [value.random for value in line], color=look.colour, linestyle="--", linewidth=1.2)
        axes.plot([], [], color=INK, linestyle="--", linewidth=1.2, label="random, same norm")
        ends = [end for value in own if value.value > 0 for end in (value.value, value.random)]
        log_height(axes, "singular value of dW", min(ends), max(ends))
        axes.set_xlabel("index")
        axes.set_xlim(0, max(value.index for value in own) + 1)
        legend(axes)

    return draw
