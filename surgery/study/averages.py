"""One number for several runs, of which some may have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from surgery.study.statistics import Estimate, across_seeds

__all__ = ["estimate", "largest", "mean", "median", "metric_of"]


def metric_of(values: Mapping[str, float | None] | None, name: str) -> float | None:
    """Return the metric `name`, or None where nothing, or no number, was measured."""
    return None if values is None else values.get(name)


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Return mean and interval over runs; None where a run has no number."""
    known = _known(values)
    # A mean over the runs that happened to survive would flatter the arm.
    return across_seeds(known) if known and len(known) == len(values) else None


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the numbers there are."""
    known = _known(values)
    return float(np.mean(known)) if known else None


def median(values: Sequence[float | None]) -> float | None:
    """Return the median of the numbers there are."""
    known = _known(values)
    return float(np.median(known)) if known else None


def largest(values: Sequence[float | None]) -> float | None:
    """Return the largest of the numbers there are."""
    known = _known(values)
    return max(known) if known else None


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
