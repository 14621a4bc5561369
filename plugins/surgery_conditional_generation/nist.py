"""NIST, Doddington 2002, as nltk computes it, in counts that add up over items."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

__all__ = ["NIST_COUNTS", "Nist", "nist_score"]

_ORDERS = 5
NIST_COUNTS = 2 * _ORDERS + 2
"""Information and number of n-grams for five orders, then lengths of references and texts, over the orders."""


class Nist:
    """What each n-gram tells, from all references: log2(occurrences of its first n - 1 words / its own).

    The weights are those of all references of a split. On a sample of its items they stay as they are: what an n-gram
    tells is a property of the language, not of the sample.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._words = 0
        for of_one in references:
            for words in of_one:
                self._words += len(words)
                for order in range(1, _ORDERS + 1):
                    self._counts.update(_ngrams(words, order))

    def counts(self, text: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Return one item's `NIST_COUNTS` numbers. For each order the reference counts with which it is highest."""
        told, totals, length = [], [], 0
        for order in range(1, _ORDERS + 1):
            own = Counter(_ngrams(text, order))
            total = sum(own.values())
            best = max(self._against(own, total, words, order) for words in references)
            told.append(best[1])
            totals.append(float(total))
            length += best[2]
        return [*told, *totals, float(length), float(_ORDERS * len(text))]

    def _against(
        self, own: Counter[tuple[str, ...]], total: int, words: Sequence[str], order: int
    ) -> tuple[float, float, int]:
        shared = own & Counter(_ngrams(words, order))
        told = sum(self._information(ngram) * count for ngram, count in shared.items())
        return (told / total if total else 0.0, told, len(words))

    def _information(self, ngram: tuple[str, ...]) -> float:
        return math.log2((self._counts[ngram[:-1]] if len(ngram) > 1 else self._words) / self._counts[ngram])


def nist_score(counts: Sequence[float]) -> float:
    """Return the score of summed counts: what an n-gram tells on average, over the orders, times a length penalty."""
    from nltk.translate.nist_score import nist_length_penalty

    told, totals, (reference, text) = counts[:_ORDERS], counts[_ORDERS : 2 * _ORDERS], counts[2 * _ORDERS :]
    if reference == 0:
        return 0.0
    average = sum(one / total if total else 0.0 for one, total in zip(told, totals, strict=True))
    return float(average * nist_length_penalty(reference, text))


def _ngrams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
