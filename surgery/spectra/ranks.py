"""What singular values say of a matrix's rank: four answers, as different questions need them."""

from __future__ import annotations

import math

import torch

from surgery.errors import StateError
from surgery.spectra.decomposition import Decomposition

__all__ = ["entropy_rank", "numerical_rank", "rank_for_energy", "stable_rank"]

_ROUNDING = 1e-12
"""What a sum of squares may lack of a share that it has."""


def stable_rank(found: Decomposition) -> float:
    """Return |M|_F^2 / s1^2 (Rudelson and Vershynin 2007, arXiv math/0503442); 0 for a matrix of zeros.

    It is never above the rank, and small errors change it little.
    """
    return found.energy / float(found.values[0]) ** 2 if found.energy else 0.0


def entropy_rank(found: Decomposition) -> float:
    """Return exp(H(s / sum of s)), the effective rank of Roy and Vetterli 2007; 0 for a matrix of zeros.

    Of a decomposition that is not exact it is that of the triplets that are there.
    """
    values = found.values[found.values > 0].double()
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return math.exp(float(-(shares * shares.log()).sum()))


def rank_for_energy(found: Decomposition, share: float = 0.9) -> int:
    """Return the smallest k whose first k triplets hold `share` of |M|_F^2; 0 for a matrix of zeros.

    Raises:
        StateError: a share that is not in (0, 1], or the triplets that are there hold less.
    """
    if not 0 < share <= 1:
        raise StateError(f"the share of energy is {share}", hint="give a number above 0 and at most 1, such as 0.9")
    if not found.energy:
        return 0
    held = found.values.double().square().cumsum(0)
    wanted = share * (float(held[-1]) if found.is_exact else found.energy)
    count = int((held < wanted * (1.0 - _ROUNDING)).sum()) + 1
    if count > len(held):
        raise StateError(f"the {len(held)} triplets hold {float(held[-1]) / found.energy:.1%} of the energy")
    return count


def numerical_rank(found: Decomposition, dtype: torch.dtype = torch.float32) -> int:
    """Return how many singular values are more than roundings of `dtype`: above s1 * max(m, n) * eps."""
    if not found.energy:
        return 0
    bound = float(found.values[0]) * max(found.shape) * torch.finfo(dtype).eps
    return int((found.values > bound).sum())
