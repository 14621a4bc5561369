"""One word for one pair of arms, and never a winner that the interval does not support."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from surgery.study.statistics import Paired

__all__ = ["ENOUGH_SEEDS", "FEWEST_SEEDS", "Verdict", "Word", "judge", "too_few", "withheld"]

Word: TypeAlias = Literal["better", "worse", "equivalent", "unresolved"]

FEWEST_SEEDS = 3
"""Below this no verdict is given: training noise cannot be told from a difference."""

ENOUGH_SEEDS = 5
"""Below this a verdict is marked indicative."""

_MOST_SEEDS = 1000
_MOST_ITEMS = 10_000_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What may be said about an arm against the reference.

    Attributes:
        word: the verdict; `unresolved`, too, where none may be given. `equivalent` wins over `better` and `worse`: a
            real difference smaller than the margin is one that the user declared not to matter.
        reason: why this word, in one clause.
        indicative: whether it rests on few seeds or on learning rates nobody swept.
        blocked: why no verdict may be given although the interval would support one; empty if it may.
        seeds_needed: fewest seeds, with the items at hand, that would resolve it if the estimates stay; None if no
            number would, or if it is resolved.
        items_needed: fewest test items, with the seeds at hand, likewise.
    """

    word: Word
    reason: str
    indicative: bool = False
    blocked: str = ""
    seeds_needed: int | None = None
    items_needed: int | None = None


def judge(
    pair: Paired,
    margin: float,
    *,
    greater_is_better: bool,
    adjusted_p: float | None = None,
    blocked: str = "",
    unswept: bool = False,
) -> Verdict:
    """Return the verdict on one pair.

    Args:
        pair: the paired difference, arm minus reference.
        margin: differences smaller than this do not matter; in the unit of the metric.
        greater_is_better: direction of the metric.
        adjusted_p: Holm's p over all pairs of the study; None means the pair's own.
        blocked: a reason why no verdict may be given (an audit that failed).
        unswept: whether a learning rate of the pair was given instead of chosen from a grid.
    """
    if blocked:
        return withheld(blocked, blocked, pair.seeds)
    word, reason = _word(pair, margin, greater_is_better, pair.p if adjusted_p is None else adjusted_p)
    if pair.seeds < FEWEST_SEEDS:
        return Verdict("unresolved", too_few(pair.seeds), seeds_needed=FEWEST_SEEDS)
    if word != "unresolved":
        return Verdict(word, reason, indicative=unswept or pair.seeds < ENOUGH_SEEDS)
    return Verdict(
        word,
        reason,
        seeds_needed=_fewest(lambda number: _resolves(pair, margin, number, pair.items), pair.seeds, _MOST_SEEDS),
        items_needed=_fewest(lambda number: _resolves(pair, margin, pair.seeds, number), pair.items, _MOST_ITEMS),
    )


def withheld(blocked: str, told: str, seeds: int) -> Verdict:
    """Return that `blocked` allows no verdict, in the words `told`; few seeds are a reason beside it."""
    return Verdict("unresolved", "; ".join(filter(None, (f"no verdict: {told}", too_few(seeds)))), blocked=blocked)


def too_few(seeds: int) -> str:
    """Return why so many seeds never give a verdict; empty if they do."""
    if seeds >= FEWEST_SEEDS:
        return ""
    return f"{seeds} seed{'s' if seeds > 1 else ''} cannot show training noise; at least {FEWEST_SEEDS} are needed"


def _word(pair: Paired, margin: float, greater_is_better: bool, p: float) -> tuple[Word, str]:
    wide, narrow = pair.interval(0.95), pair.interval(0.90)
    if narrow.within(margin):
        tail = "" if 0 in wide else " (a real difference, smaller than the margin)"
        return "equivalent", f"the 90 % interval lies inside the margin{tail}"
    if 0 in wide:
        return "unresolved", "the 95 % interval holds 0 and the 90 % interval leaves the margin"
    if p > 0.05:
        return "unresolved", "the 95 % interval excludes 0, but not after Holm's correction for several arms"
    word: Word = "better" if (pair.difference > 0) == greater_is_better else "worse"
    return word, "the 95 % interval excludes 0"


def _resolves(pair: Paired, margin: float, seeds: int, items: int) -> bool:
    size = abs(pair.difference)
    return pair.forecast(seeds, items, 0.95) < size or size + pair.forecast(seeds, items, 0.90) < margin


def _fewest(resolves: Callable[[int], bool], start: int, most: int) -> int | None:
    """Return the smallest number above `start` that resolves: widths shrink as the number grows, so bisect."""
    low, high = start, start
    while not resolves(high):
        if high >= most:
            return None
        low, high = high, min(most, max(high + 1, math.ceil(high * 1.5)))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if resolves(middle) else (middle, high)
    return high
