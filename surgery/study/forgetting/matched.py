"""Curves that are straight between their points, and where they first reach a level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from surgery.study.resample import Floats

__all__ = ["Place", "common_level", "reached"]


@dataclass(frozen=True, slots=True)
class Place:
    """A place on a curve: `share` of the way from point `index` to the next one."""

    index: int
    share: float

    def of(self, values: Sequence[float] | Sequence[Floats]) -> Floats:
        """Return what values (numbers, or arrays) given at the points are at this place."""
        left = np.asarray(values[self.index], dtype=np.float64)
        if self.share == 0:
            return left
        return (1 - self.share) * left + self.share * np.asarray(values[self.index + 1], dtype=np.float64)


def common_level(curves: Mapping[str, Sequence[float]]) -> float:
    """Return the largest level that every curve reaches; greater is better."""
    return min(max(curve) for curve in curves.values())


def reached(curve: Sequence[float], level: float) -> Place:
    """Return the first place at which `curve` is at `level` or above.

    Raises:
        ValueError: it never is.
    """
    if curve[0] >= level:
        return Place(0, 0.0)
    for index in range(1, len(curve)):
        if curve[index] >= level:
            return Place(index - 1, (level - curve[index - 1]) / (curve[index] - curve[index - 1]))
    raise ValueError(f"the curve never reaches {level}")
