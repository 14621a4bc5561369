"""Interleaved timing: the only kind that survives a noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

__all__ = ["interleaved", "ratio"]


def interleaved(first: Callable[[], None], second: Callable[[], None], rounds: int) -> tuple[list[float], list[float]]:
    """Return seconds of both, timed in the order A B B A, after one warm-up of each."""
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds):
        order = ((0, first), (1, second)) if index % 2 == 0 else ((1, second), (0, first))
        for which, act in order:
            start = time.perf_counter()
            act()
            times[which].append(time.perf_counter() - start)
    return times


def ratio(times: tuple[list[float], list[float]]) -> float:
    """Return the median of the pairwise ratios first / second."""
    return statistics.median(a / b for a, b in zip(*times, strict=True))
