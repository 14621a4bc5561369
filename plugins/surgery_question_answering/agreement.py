"""How well an answer agrees with the references: Exact Match and F1, as SQuAD defines them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

__all__ = ["exact_match", "f1", "normal"]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def normal(text: str) -> str:
    """Return `text` in lower case, without ASCII punctuation and the articles a, an, the, words one space apart.

    Rajpurkar et al. 2016, SQuAD: 100,000+ Questions for Machine Comprehension of Text, section 6.1 (arXiv 1606.05250).
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, references: Iterable[str]) -> float:
    """Return 1 where `answer` is one of the references, normalised, else 0."""
    wanted = normal(answer)
    return float(any(normal(reference) == wanted for reference in references))


def f1(answer: str, references: Iterable[str]) -> float:
    """Return the best overlap of words with a reference: the harmonic mean of precision and recall of bags of words.

    Texts of which nothing is left, such as "The", agree with each other alone.
    """
    return max(_overlap(normal(answer).split(), normal(reference).split()) for reference in references)


def _overlap(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = sum((Counter(answer) & Counter(reference)).values())
    return 2 * shared / (len(answer) + len(reference))
