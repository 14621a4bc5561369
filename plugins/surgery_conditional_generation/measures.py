"""What is counted in each item's text, so that a corpus's score can be computed from any sample of its items."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from surgery.errors import TrainingError
from surgery_conditional_generation.nist import NIST_COUNTS, Nist, nist_score

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Measures", "require_libraries", "scores"]

_LIBRARIES = {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score", "nltk": "nltk"}
_BLEU_COUNTS = 10  # lengths of the text and of the closest reference, matches and totals of four orders
_CHRF_COUNTS = 18  # n-grams of the text, of the best reference, and their matches, of six orders
_WRITTEN = "written"
_ROUGE = "rouge_l"


def require_libraries() -> None:
    """Raise TrainingError with what to install where a library of metrics is missing."""
    missing = []
    for module, distribution in _LIBRARIES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(distribution)
    if missing:
        what = (
            f"generated texts are scored by {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} missing"
        )
        raise TrainingError(what, "task.kind", "pip install 'model-surgery[generation]'")


class Measures:
    """The references of some items, ready to count what texts share with them.

    Args:
        references: the references of each text.
        lowercase: whether case is ignored.
    """

    def __init__(self, references: Sequence[Sequence[str]], lowercase: bool) -> None:
        self._references = references
        self._lowercase = lowercase

    def items(self, texts: Sequence[str], numbers: Sequence[int], count: int) -> dict[str, np.ndarray]:
        """Return per-item arrays, (count,) float64 each: text k is item `numbers[k]`'s, other items have zeros.

        `written` is 1 for items with a text. Sums of these arrays over any items give the score of their corpus.
        """
        import numpy as np

        texts = [text.strip() for text in texts]
        counted = {
            **_columns("bleu", self._sacrebleu(texts, "bleu"), _BLEU_COUNTS),
            **_columns("chrf", self._sacrebleu(texts, "chrf"), _CHRF_COUNTS),
            **_columns("nist", self._nist(texts), NIST_COUNTS),
            _ROUGE: self._rouge(texts),
            _WRITTEN: [1.0] * len(texts),
        }
        found = {name: np.zeros(count) for name in counted}
        for name, values in counted.items():
            found[name][list(numbers)] = values
        return found

    def _sacrebleu(self, texts: Sequence[str], name: str) -> list[list[float]]:
        # One stream for each place among the references; where an item has fewer, None.
        most = max(map(len, self._references), default=0)
        streams = [[one[place] if place < len(one) else None for one in self._references] for place in range(most)]
        found = _metric(name, self._lowercase)._extract_corpus_statistics(texts, streams) if texts else []
        return [[float(value) for value in row] for row in found]

    def _nist(self, texts: Sequence[str]) -> list[list[float]]:
        tokenize = _tokenizer()
        fold = str.lower if self._lowercase else str
        words = [[tokenize(fold(text)).split() for text in one] for one in self._references]
        nist = Nist(words)
        return [nist.counts(tokenize(fold(text)).split(), of) for text, of in zip(texts, words, strict=True)]

    def _rouge(self, texts: Sequence[str]) -> list[float]:
        from rouge_score.rouge_scorer import RougeScorer

        # It lowers the case itself, in any case.
        scorer = RougeScorer(["rougeL"])
        pairs = zip(self._references, texts, strict=True)
        return [float(scorer.score_multi(list(of), text)["rougeL"].fmeasure) for of, text in pairs]


def scores(items: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return `bleu` and `chrf` (0 to 100), `nist`, and `rouge_l` (0 to 1) of what was written.

    Nothing where no texts were asked for. A sample of items that holds none of those with a text scores 0.
    """
    if _WRITTEN not in items:
        return {}
    return {
        "bleu": float(_metric("bleu")._compute_score_from_stats(_whole(_sums(items, "bleu", _BLEU_COUNTS))).score),
        "nist": nist_score(_sums(items, "nist", NIST_COUNTS)),
        "chrf": float(_metric("chrf")._compute_score_from_stats(_whole(_sums(items, "chrf", _CHRF_COUNTS))).score),
        "rouge_l": float(items[_ROUGE].sum() / max(items[_WRITTEN].sum(), 1)),
    }


def _columns(name: str, rows: Sequence[Sequence[float]], count: int) -> dict[str, list[float]]:
    return {f"{name}_{index}": [row[index] for row in rows] for index in range(count)}


def _sums(items: Mapping[str, np.ndarray], name: str, count: int) -> list[float]:
    return [float(items[f"{name}_{index}"].sum()) for index in range(count)]


def _whole(values: Sequence[float]) -> list[int]:
    return [round(value) for value in values]


@functools.cache
def _metric(name: str, lowercase: bool = False) -> Any:
    """Return sacrebleu's BLEU (13a tokens, exponential smoothing) or chrF2, as its command line has them."""
    require_libraries()
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(lowercase=lowercase, force=True) if name == "bleu" else CHRF(lowercase=lowercase)


@functools.cache
def _tokenizer() -> Any:
    """Return mteval-v13a's tokenizer, which BLEU uses as well."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()  # type: ignore[no-untyped-call]
