"""One colour and one marker for each arm, the same everywhere (Okabe and Ito 2008; the reference in ink)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery.study import Comparison, StudySpec

__all__ = ["GRID", "INK", "MUTED", "PARTS", "REFERENCE", "SURFACE", "Look", "colours", "looks", "method_of", "themed"]

INK, MUTED, GRID, SURFACE = "#010101", "#6b7280", "#d9dce1", "#fefefe"
"""Stand-ins that become CSS variables, so that plots follow the reader's light or dark page."""

_ARMS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
_MARKERS = ("s", "D", "^", "v", "P", "X", "p")
_DASHES = ("-", "--", "-.", ":")

_HOMES = {"lora": 0, "bias-only": 1, "ia3": 2, "full": 5}
"""Adapter -> its colour in every study in which it is no reference."""

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


REFERENCE = Look(INK, "o", "-", "var(--ink)")


def looks(comparison: Comparison) -> dict[str, Look]:
    """Return arm -> look: the reference in ink, arms in the colours of their methods, baselines in grey."""
    summary = comparison.summary
    found = colours([(row.arm, method_of(comparison.study, row.arm)) for row in summary.rows if row.kind == "arm"])
    for row in summary.rows:
        if row.kind == "reference":
            found[row.arm] = REFERENCE
        elif row.kind != "arm":
            found[row.arm] = Look(MUTED, "d" if row.kind == "frozen" else "x", "--", "var(--muted)")
    return found


def method_of(study: StudySpec, arm: str) -> str:
    """Return the adapters of an arm's rules: what one colour stands for."""
    return "+".join(dict.fromkeys(rule.adapter for rule in study.arms[arm].rules))


def colours(arms: Sequence[tuple[str, str]]) -> dict[str, Look]:
    """Return arm -> look, given arms and their methods.

    The first arm of a method that has a colour of its own gets it; others take those that no method here has, in
    order. Beyond seven arms colours come again with other dashes.
    """
    places: dict[str, int] = {}
    for arm, method in arms:
        home = _HOMES.get(method)
        if home is not None and home not in places.values():
            places[arm] = home
    taken = set(places.values())
    free = [place for place in range(len(_ARMS)) if place not in taken]
    rest = [arm for arm, _ in arms if arm not in places]
    for index, arm in enumerate(rest):
        places[arm] = free[index] if index < len(free) else len(_ARMS) + index - len(free)
    return {arm: _look(places[arm]) for arm, _ in arms}


def _look(place: int) -> Look:
    index, again = place % len(_ARMS), place // len(_ARMS)
    return Look(_ARMS[index], _MARKERS[(index + again) % 7], _DASHES[again % 4], f"var(--arm{index})")


def themed(svg: str) -> str:
    """Return `svg` with colours as CSS variables of the page, the colour itself as the fallback."""
    named = {**_VARIABLES, **{colour: f"--arm{index}" for index, colour in enumerate(_ARMS)}}
    named |= {colour: f"--part{index}" for index, colour in enumerate(PARTS)}
    for colour, variable in named.items():
        svg = svg.replace(colour, f"var({variable}, {colour})")
    return svg
