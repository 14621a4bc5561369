"""Figures as inline SVG: themed by the page, readable by a screen reader, the same bytes for the same numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from surgery.report.palette import GRID, INK, MUTED, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["canvas", "svg_of"]

_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched, and takes the page's font
    "svg.hashsalt": "surgery",
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "savefig.transparent": True,
    "figure.constrained_layout.use": True,
    "axes.unicode_minus": True,
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure of `width` x `height` inches and its axes; small, because it must be readable on a phone."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height))
        yield figure, figure.add_subplot()


def svg_of(figure: Figure, name: str, title: str, description: str) -> str:
    """Return `figure` as an inline SVG element.

    Args:
        name: unique on the page; every id inside begins with it.
        title, description: what the figure shows and says, for readers who cannot see it.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'(xlink:)?href="#([^"]+)"', rf'href="#{name}-\2"', text)
    text = text.replace("'DejaVu Sans'", "inherit").replace("inherit, sans-serif", "var(--font)")
    labels = f'aria-labelledby="{name}-title" aria-describedby="{name}-desc"'
    head = f'<svg role="img" {labels} preserveAspectRatio="xMidYMid meet"'
    size = re.search(r'viewBox="[^"]+"', text)
    body = text[text.index(">") + 1 :]
    box = size.group() if size else ""
    words = f'<title id="{name}-title">{_escaped(title)}</title>\n<desc id="{name}-desc">{_escaped(description)}</desc>'
    return themed(f"{head} {box}>\n{words}{body}")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
