"""Whether two collections of texts share any: whole texts, and runs of words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["RUN", "Overlap", "overlap"]

RUN = 8
"""Words in a run: long enough that two texts share one by copying, rarely by chance (Chowdhery et al. 2022)."""

# A character of a script without spaces is a word of its own.
_UNSPACED = r"\u2e80-\u9fff\uf900-\ufaff\u0e00-\u0eff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


@dataclass(frozen=True)
class Overlap:
    """How much of one collection stands in another.

    Attributes:
        texts, shared_texts: different texts of the one, and those of them that the other holds too, letter case,
            punctuation and spaces apart.
        runs, shared_runs: different runs of `RUN` words (a shorter text is one run), and those that the other holds.
    """

    texts: int
    shared_texts: int
    runs: int
    shared_runs: int


def overlap(own: Iterable[str], other: Iterable[str]) -> Overlap:
    """Return how much of `own` stands in `other`. Memory grows with `own` alone; `other` is read once."""
    mine = {tuple(_words(text)) for text in own} - {()}
    runs = {run for words in mine for run in _runs(words)}
    shared: set[tuple[str, ...]] = set()
    shared_runs: set[tuple[str, ...]] = set()
    for text in other:
        words = tuple(_words(text))
        if words in mine:
            shared.add(words)
        shared_runs.update(run for run in _runs(words) if run in runs)
    return Overlap(len(mine), len(shared), len(runs), len(shared_runs))


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _runs(words: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    return (words[start : start + RUN] for start in range(max(len(words) - RUN, 0) + 1))
