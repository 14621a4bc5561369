"""The few functions of SciPy that studies need, imported when first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache

__all__ = ["binomial_p", "root", "student"]


@lru_cache(maxsize=4096)
def student(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t with `freedom` degrees of freedom."""
    return float(importlib.import_module("scipy.stats").t.ppf(probability, freedom))


def binomial_p(successes: int, trials: int) -> float:
    """Return the exact two-sided p of a fair coin."""
    return float(importlib.import_module("scipy.stats").binomtest(successes, trials).pvalue)


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where `function` crosses zero between `low` and `high`."""
    return float(importlib.import_module("scipy.optimize").brentq(function, low, high, xtol=1e-13))
