"""The item half of the two-level bootstrap: the same resampled items for every arm and every seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Items", "resampled_ratios", "resampled_scores"]

Floats: TypeAlias = NDArray[np.float64]
Items: TypeAlias = Mapping[str, NDArray[np.generic]]
"""Per-item arrays of one run, each of shape (items,): `loss`, `units`, and what the task's metrics need."""

_CELLS_AT_ONCE = 4_000_000  # 32 MB of indices: larger blocks only miss the cache


def resampled_ratios(values: Floats, units: Floats, resamples: int, seed: int) -> Floats:
    """Return sum(values) / sum(units) on resampled items, for metrics that are such a ratio (accuracy, mean loss).

    Args:
        values: what each run earned on each item, (runs, items).
        units: what each item weighs, (items,); ones for accuracy, predicted tokens for a language model's loss.
        resamples: how many times the items are drawn again, with replacement.
        seed: of the draws. Rows of one call share their draws, so differences between rows stay paired.

    Returns:
        (resamples, runs).
    """
    runs, items = values.shape
    generator = np.random.default_rng(seed)
    weighed = np.concatenate([values, units[None]]).T
    out = np.empty((resamples, runs))
    block = max(1, _CELLS_AT_ONCE // items)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, items, (rows, items)) + np.arange(rows)[:, None] * items
        counts = np.bincount(drawn.ravel(), minlength=rows * items).reshape(rows, items)
        sums = counts.astype(np.float64) @ weighed
        out[start : start + rows] = sums[:, :-1] / sums[:, -1:]
    return out


def resampled_scores(runs: Sequence[Items], score: Callable[[Items], float], resamples: int, seed: int) -> Floats:
    """Return a corpus metric (F1, Matthews) computed anew on resampled items.

    Args:
        runs: the per-item arrays of each run, all about the same items in the same order.
        score: per-item arrays -> value of the metric.
        resamples, seed: as in `resampled_ratios`.

    Returns:
        (resamples, runs).
    """
    items = len(next(iter(runs[0].values())))
    generator = np.random.default_rng(seed)
    out = np.empty((resamples, len(runs)))
    for row in range(resamples):
        drawn = generator.integers(0, items, items)
        for column, arrays in enumerate(runs):
            out[row, column] = score({name: array[drawn] for name, array in arrays.items()})
    return out
