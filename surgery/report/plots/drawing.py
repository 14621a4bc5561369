"""What every plot is: something to draw, and the words around it."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from surgery.report.palette import Look
from surgery.study import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "MOST_VIEWS",
    "Drawing",
    "Looks",
    "Picture",
    "legend",
    "level_axis",
    "log_axis",
    "log_height",
    "plain",
    "sample",
    "wrapped",
]

Looks: TypeAlias = Mapping[str, Look]
"""Arm -> how it is drawn."""

MOST_VIEWS = 12
"""As many views as the style sheet has switches for."""

_MOST_TICKS = 6
_WIDE, _HIGH = 262.0, 150.0  # points of an axis, about
_LONG_LABEL = 24
_STEPS: Mapping[str, tuple[tuple[float, ...], ...]] = {
    "decimal": ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)),
    "rates": ((1, 3), (1,)),
    "binary": ((1, 2, 4, 8, 16, 32, 64, 128, 256, 512), (1, 4, 16, 64, 256), (1, 10, 100), (1, 32), (1,)),
}
"""Kind of axis -> where in a power of its base ticks may stand, the densest first."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One view of a plot.

    Attributes:
        label: on the button that shows it; empty where it is the only one.
        spoken: the message in words, for readers who cannot see it.
        draw: draws it on axes.
    """

    label: str
    spoken: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True, slots=True)
class Drawing:
    """One plot before it is drawn.

    Attributes:
        name: its anchor on the page.
        title: what it shows, in a few words.
        caption: how to read it, with n and S.
        tables: names of the CSV files that hold every number in it.
        views: one picture, or several of which the reader chooses.
        width, height: inches; narrow, because it must be readable on a phone.
    """

    name: str
    title: str
    caption: str
    tables: tuple[str, ...]
    views: tuple[Picture, ...]
    width: float = 4.7
    height: float = 3.4


def sample(summary: Summary, items: bool = True) -> str:
    """Return the sample sizes as a caption ends: S seeds and n test items."""
    seeds = f"S = {len(summary.seeds)} seed{'s' if len(summary.seeds) > 1 else ''}"
    return f"{seeds}, n = {summary.items:,} test items." if items else f"{seeds}."


def plain(label: str) -> str:
    """Return `label` so that matplotlib takes no dollar sign for mathematics."""
    return label.replace("$", r"\$")


def wrapped(label: str, width: int = 16) -> str:
    """Return `label` in lines that fit beside an axis."""
    return "\n".join(textwrap.wrap(plain(label), width, break_long_words=False)) or label


def legend(axes: Axes) -> None:
    """Put the legend above the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 1 if max(map(len, labels)) > _LONG_LABEL else 2
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 1.01), ncols=columns, borderaxespad=0.2,
                    columnspacing=1.4, handlelength=2.2)  # fmt: skip


def level_axis(name: str, unit: str) -> str:
    """Return the label of an axis of the metric: differences are points, levels are per cent."""
    shown = "%" if unit == "pt" else unit
    return f"test {name}{f' [{shown}]' if shown else ''}"


def log_axis(
    axes: Axes, told: Callable[[float], str], label: str, low: float, high: float, kind: str = "decimal"
) -> None:
    """Make x logarithmic from `low` to `high`, with a few ticks in the reader's own numbers.

    matplotlib labels powers of ten alone, of which a short range may hold none. `kind` is `binary` for bytes and
    `rates` for learning rates.
    """
    axes.set_xscale("log")
    low, high = _padded(low, high)
    axes.set_xlim(low, high)
    ticks = _ticks(low, high, kind, lambda one, other: 2.7 * (len(told(one)) + len(told(other))) + 5, _WIDE)
    axes.set_xticks(ticks, [told(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(label)


def log_height(axes: Axes, label: str, low: float, high: float) -> None:
    """Make y logarithmic from `low` to `high`, with ticks as plain numbers."""
    axes.set_yscale("log")
    low, high = _padded(low, high)
    axes.set_ylim(low, high)
    ticks = _ticks(low, high, "decimal", lambda _one, _other: 20.0, _HIGH)
    axes.set_yticks(ticks, [f"{tick:.4g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylabel(label)


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = (high / low) ** 0.06 if high > low else 2.0
    return low / pad, high * pad


def _ticks(low: float, high: float, kind: str, room: Callable[[float, float], float], points: float) -> list[float]:
    """Return the densest ticks whose labels do not touch, on an axis of so many points."""
    base = 1024 if kind == "binary" else 10
    powers = range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
    each = points / math.log(high / low)
    ticks: list[float] = []
    for steps in _STEPS[kind]:
        ticks = [step * float(base) ** power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if all(each * math.log(other / one) >= room(one, other) for one, other in itertools.pairwise(ticks)):
            return ticks
    return ticks[:: math.ceil(len(ticks) / _MOST_TICKS)]
