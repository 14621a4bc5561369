"""Fixed-point slices: factors cut into pieces whose float64 product is exact, in whatever order it is summed.

The one-slice form is the scheme of Ozaki, Ogita, Oishi and Rump (Numerical Algorithms 59, 2012) on a grid that is
common to a row of `up` and to a column of `down`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from surgery.errors import StateError

__all__ = ["Sliced", "sliced", "spans"]

_EXACT_BITS = 53
_MOST_SLICES = 64


@dataclass(frozen=True)
class Sliced:
    """A product cut into exact ones: up @ down is the sum over `groups` of left @ right, each exact in float64.

    Attributes:
        groups: pairs of (out, k) and (k, in), float64, the largest contribution first. The first pair alone is the
            one-slice approximation. Pairs that are zero throughout are left out, apart from the first.
        bits: of a slice.
    """

    groups: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    bits: int


def sliced(up: torch.Tensor, down: torch.Tensor, *, only_first: bool = False) -> Sliced:
    """Cut up (out, r) @ down (r, in), both float64, finite and within 2**±200, until nothing is left.

    Slice p of a row of `up` whose entries are below 2**e holds multiples of 2**(e - p*beta - p + 1), at most 2**beta of
    them, and likewise for columns of `down`. All products of slices p and q with one p + q therefore lie on one grid
    and are computed as one product with k = r * (number of such pairs). Their partial sums stay below 2**53 units,
    so no addition ever rounds: any order, blocking, or use of FMA gives the same bits.
    """
    beta = _width(up.shape[1])
    left = _slices(up, 1, beta, 1 if only_first else _MOST_SLICES)
    right = _slices(down, 0, beta, 1 if only_first else _MOST_SLICES)
    pairs = min(len(left), len(right))
    if pairs > 1 and _width(up.shape[1] * pairs) < beta:
        # Groups of several pairs are longer sums and need a bit more room.
        beta = _width(up.shape[1] * _MOST_SLICES)
        left, right = _slices(up, 1, beta, _MOST_SLICES), _slices(down, 0, beta, _MOST_SLICES)
    groups = []
    for total in range(len(left) + len(right) - 1):
        chosen = [(p, total - p) for p in range(len(left)) if 0 <= total - p < len(right)]
        group = torch.cat([left[p] for p, _ in chosen], 1), torch.cat([right[q] for _, q in chosen], 0)
        if total == 0 or any(bool(left[p].any()) and bool(right[q].any()) for p, q in chosen):
            groups.append((group[0].contiguous(), group[1].contiguous()))
    return Sliced(tuple(groups), beta)


def spans(factor: torch.Tensor, axis: int) -> torch.Tensor:
    """Return how many bits each row (axis 1) or column (axis 0) of a float64 factor needs on one common grid.

    A product of a row and a column is exact in float64, in any order of summing, where their spans and the bits of the
    number of terms are 53 together.
    """
    if not factor.numel():
        return torch.zeros(factor.shape[1 - axis], dtype=torch.int64)
    mantissa, exponent = torch.frexp(factor)
    digits = (mantissa * 2.0**53).to(torch.int64)
    lowest = torch.frexp((digits & -digits).to(torch.float64)).exponent.to(torch.int64) + exponent - 54
    is_zero = factor == 0
    top = torch.where(is_zero, -(1 << 30), exponent.to(torch.int64)).amax(axis)
    bottom = torch.where(is_zero, 1 << 30, lowest).amin(axis)
    return (top - bottom).clamp(min=0)


def _width(length: int) -> int:
    """Return beta, the bits of a slice: length * 2**beta * 2**beta units must not pass 2**53."""
    beta = (_EXACT_BITS - max(length - 1, 0).bit_length()) // 2
    if beta < 8:
        raise StateError(f"a product of rank {length} is too long to be exact", hint="nothing was merged")
    return beta


def _slices(factor: torch.Tensor, axis: int, beta: int, most: int) -> list[torch.Tensor]:
    """Return slices of `factor` on grids that its rows (axis 1) or columns (axis 0) share, the coarsest first."""
    if factor.numel() == 0:
        return [factor]
    peak = factor.abs().amax(axis, keepdim=True)
    exponent = torch.frexp(peak).exponent.to(torch.float64)
    unit = torch.exp2(exponent - beta)
    rest = factor
    found = []
    for _ in range(most):
        # Adding 1.5 * 2**52 units leaves a multiple of the unit, rounded to nearest; taking it away is exact.
        magic = unit * (1.5 * 2.0**52)
        piece = (rest + magic) - magic
        found.append(piece)
        rest = rest - piece
        if most > 1 and not bool(rest.any()):
            return found
        unit = unit * 2.0 ** -(beta + 1)
    if most > 1:
        raise StateError("an adapter's numbers span too many magnitudes", hint="nothing was merged")
    return found
