"""One colour and one marker for each arm, the same everywhere (Okabe and Ito 2008; the reference in ink)."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.study.summary import Summary

__all__ = ["GRID", "INK", "MUTED", "PARTS", "SURFACE", "Look", "looks", "themed"]

INK, MUTED, GRID, SURFACE = "#010101", "#6b7280", "#d9dce1", "#fefefe"
"""Stand-ins that become CSS variables, so that plots follow the reader's light or dark page."""

_ARMS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")

PARTS = ("#1f3b57", "#4f7396", "#8fb0cc", "#c9dbea")
"""Components of the memory: shades of one hue, so that no reader takes them for arms."""

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", SURFACE: "--surface"}


@dataclass(frozen=True, slots=True)
class Look:
    """How an arm is drawn.

    Attributes:
        colour: hex, or a stand-in of `themed`.
        marker: of matplotlib.
        dash: of matplotlib.
        css: the colour as CSS, for the page.
    """

    colour: str
    marker: str
    dash: str
    css: str


def looks(summary: Summary) -> dict[str, Look]:
    """Return arm -> look. Arms take colours in the order of the study, baselines are grey."""
    found: dict[str, Look] = {}
    index = 0
    for row in summary.rows:
        if row.kind == "reference":
            found[row.arm] = Look(INK, "o", "-", "var(--ink)")
        elif row.kind == "arm":
            colour = _ARMS[index % len(_ARMS)]
            found[row.arm] = Look(colour, _MARKERS[index % len(_MARKERS)], "-", f"var(--arm{index % len(_ARMS)})")
            index += 1
        else:
            found[row.arm] = Look(MUTED, "D" if row.kind == "frozen" else "X", "--", "var(--muted)")
    return found


def themed(svg: str) -> str:
    """Return `svg` with colours as CSS variables of the page, the colour itself as the fallback."""
    named = {**_VARIABLES, **{colour: f"--arm{index}" for index, colour in enumerate(_ARMS)}}
    named |= {colour: f"--part{index}" for index, colour in enumerate(PARTS)}
    for colour, variable in named.items():
        svg = svg.replace(colour, f"var({variable}, {colour})")
    return svg
