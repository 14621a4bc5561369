"""What every plot is: something to draw, and the words around it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from surgery.report.palette import Look
from surgery.study import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Drawing", "Looks", "plain", "sample", "wrapped"]

Looks: TypeAlias = Mapping[str, Look]
"""Arm -> how it is drawn."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """One plot before it is drawn.

    Attributes:
        name: its anchor on the page.
        title: what it shows, in a few words.
        caption: how to read it, with n and S.
        spoken: the message in words, for readers who cannot see the plot.
        draw: draws it on axes.
        width, height: inches; narrow, because it must be readable on a phone.
    """

    name: str
    title: str
    caption: str
    spoken: str
    draw: Callable[[Axes], None]
    width: float = 4.7
    height: float = 3.2


def sample(summary: Summary, items: bool = True) -> str:
    """Return the sample sizes as a caption ends: S seeds and n test items."""
    seeds = f"S = {len(summary.seeds)} seed{'s' if len(summary.seeds) > 1 else ''}"
    return f"{seeds}, n = {summary.items:,} test items." if items else f"{seeds}."


def plain(label: str) -> str:
    """Return `label` so that matplotlib takes no dollar sign for mathematics."""
    return label.replace("$", r"\$")


def wrapped(label: str) -> str:
    """Return `label` in lines that fit beside an axis."""
    return "\n".join(textwrap.wrap(plain(label), 16, break_long_words=False)) or label
