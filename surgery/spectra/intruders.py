"""Intruder dimensions: strong directions of a tuned weight that are like none of the base's."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.errors import StateError
from surgery.spectra.decomposition import Decomposition

__all__ = ["EPSILON", "LOOKED_AT", "Intruders", "intruders"]

EPSILON = 0.5
LOOKED_AT = 10
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Intruders:
    """What was found among the leading left singular vectors of a tuned weight.

    Attributes:
        count: how many have a cosine below `epsilon` with every left singular vector of the base.
        undecided: how many may have one, where only the base's leading vectors are known; else 0.
        energy: the intruders' share of the tuned weight's |W|_F^2.
        cosines: for each vector that was looked at, the largest |cosine| with a known one of the base.
        looked_at, epsilon: what was asked for.
    """

    count: int
    undecided: int
    energy: float
    cosines: tuple[float, ...]
    looked_at: int
    epsilon: float


def intruders(
    base: Decomposition, tuned: Decomposition, looked_at: int = LOOKED_AT, epsilon: float = EPSILON
) -> Intruders:
    """Count intruder dimensions, as Shuttleworth et al. 2024 (arXiv 2410.21228) define them in algorithm 1.

    A left singular vector of the tuned weight, among the first `looked_at`, is one where its |cosine| with every left
    singular vector of the base is below `epsilon`. Of a base whose decomposition is not exact only the leading vectors
    are known; what a vector has outside of them, sqrt(1 - sum of squared cosines), bounds its cosine with any other.

    Raises:
        StateError: two weights of different heights, or an epsilon outside of (0, 1].
    """
    if base.shape[0] != tuned.shape[0]:
        raise StateError(f"weights of {base.shape[0]} and {tuned.shape[0]} rows", hint="compare one weight with itself")
    if not 0 < epsilon <= 1 or looked_at < 1:
        raise StateError(f"{looked_at} vectors and a cosine of {epsilon}", hint="give one vector and (0, 1] at least")
    looked_at = min(looked_at, len(tuned.values))
    squares = (base.left.double().mT @ tuned.left[:, :looked_at].double()).square()
    largest = squares.amax(0).sqrt()
    is_new = largest < epsilon
    rest = (1.0 - squares.sum(0)).clamp(min=0.0).sqrt()
    is_open = is_new & (rest >= epsilon - _ROUNDING) if not base.is_exact else is_new & False
    is_new &= ~is_open
    shares = tuned.values[:looked_at].double().square() / (tuned.energy or 1.0)
    return Intruders(
        count=int(is_new.sum()),
        undecided=int(is_open.sum()),
        energy=float(shares[is_new].sum()),
        cosines=tuple(largest.tolist()),
        looked_at=looked_at,
        epsilon=epsilon,
    )
