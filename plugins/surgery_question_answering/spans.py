"""The best answer that a window offers: a first and a last token that go together."""

from __future__ import annotations

import numpy as np

__all__ = ["best_span"]


def best_span(
    starts: np.ndarray, ends: np.ndarray, max_answer_length: int, n_best: int
) -> tuple[float, int, int] | None:
    """Return (score, first, last) of the best pair among the `n_best` likeliest first and last tokens.

    The score is the sum of both logits (Devlin et al. 2019, arXiv 1810.04805, section 4.2).

    Args:
        starts, ends: logits of the context's tokens, (tokens,) each, float.
        max_answer_length: tokens of an answer, at most.
        n_best: how many of either are looked at.

    Returns:
        None where no two of them go together. Of equal pairs the likeliest first token wins, then the earlier one.
    """
    first = np.argsort(-starts, kind="stable")[:n_best]
    last = np.argsort(-ends, kind="stable")[:n_best]
    tokens = last[None, :] - first[:, None] + 1
    scores = np.where((tokens >= 1) & (tokens <= max_answer_length), starts[first][:, None] + ends[last], -np.inf)
    if not scores.size or scores.max() == -np.inf:
        return None
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    return float(scores[row, column]), int(first[row]), int(last[column])
