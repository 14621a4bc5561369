"""Accuracy, F1 and Matthews correlation of classes, all from one table of counts.

A study computes them on thousands of resampled test sets: one `bincount` is some forty times as fast as a pass over the
items for each metric.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["class_scores"]


def class_scores(label: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Return `accuracy`, `macro_f1`, `matthews`, and for two classes `f1` of the second.

    Args:
        label, prediction: class numbers from 0, (items,), at least one item.

    Classes that occur in neither array enter no mean. F1 of a class that is never predicted is 0, and so is Matthews
    correlation where all labels or all predictions are alike (its limit; Gorodkin 2004, doi 10.1016/
    j.compbiolchem.2004.09.006, defines it for more than two classes).
    """
    label, prediction = label.astype(np.int64), prediction.astype(np.int64)
    classes = int(max(label.max(), prediction.max())) + 1
    table = np.bincount(label * classes + prediction, minlength=classes * classes).reshape(classes, classes)
    right, actual, called = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    present = actual + called > 0
    f1 = 2 * right[present] / (actual + called)[present]
    scores = {
        "accuracy": float(right.sum() / label.size),
        "macro_f1": float(f1.mean()),
        "matthews": _matthews(right, actual, called),
    }
    if classes <= 2:
        scores["f1"] = float(2 * right[-1] / max(actual[-1] + called[-1], 1)) if classes == 2 else 0.0
    return scores


def _matthews(right: np.ndarray, actual: np.ndarray, called: np.ndarray) -> float:
    total = int(actual.sum())
    # Whole numbers of Python: products of four counts leave 64 bits at a hundred thousand items.
    rows, columns = [int(count) for count in actual], [int(count) for count in called]
    shared = total * int(right.sum()) - sum(row * column for row, column in zip(rows, columns, strict=True))
    spread = (total**2 - sum(row**2 for row in rows)) * (total**2 - sum(column**2 for column in columns))
    return shared / math.sqrt(spread) if spread else 0.0
