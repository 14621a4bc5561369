"""How far two changes act in the same directions."""

from __future__ import annotations

from typing import Literal

import torch

from surgery.errors import StateError
from surgery.spectra.decomposition import Decomposition

__all__ = ["Side", "expected_overlap", "overlap", "overlaps"]

Side = Literal["left", "right"]
"""Left singular vectors are directions of the output, right ones of the input."""


def overlap(a: Decomposition, b: Decomposition, i: int, j: int, side: Side = "right") -> float:
    """Return phi(a, b, i, j) = |U_a^iT U_b^j|_F^2 / min(i, j), of the first i and j singular vectors; between 0 and 1.

    It is the normalised similarity on Grassmann manifolds of Hu et al. 2021 (arXiv 2106.09685), section 7.2 and
    appendix G: 1 where one subspace holds the other, 0 where they are orthogonal. Their projection metric d gives
    phi = 1 - d^2 / p, p = min(i, j) (the appendix prints another form).

    Raises:
        StateError: other spaces, or fewer vectors than asked for.
    """
    return float(overlaps(a, b, i, j, side)[i - 1, j - 1])


def overlaps(a: Decomposition, b: Decomposition, i: int, j: int, side: Side = "right") -> torch.Tensor:
    """Return phi for all pairs up to (i, j), as (i, j): the map that the paper shows; raises as `overlap`."""
    first, second = (_vectors(one, count, side) for one, count in ((a, i), (b, j)))
    if first.shape[0] != second.shape[0]:
        what = f"directions among {first.shape[0]} and among {second.shape[0]} have nothing to overlap in"
        raise StateError(what, hint="compare changes of one matrix")
    together = (first.mT @ second).square().cumsum(0).cumsum(1)
    smaller = torch.minimum(torch.arange(1, i + 1)[:, None], torch.arange(1, j + 1)[None, :])
    return together / smaller


def expected_overlap(size: int, i: int, j: int) -> float:
    """Return the mean of phi for random subspaces of dimensions i and j in `size` dimensions: max(i, j) / size.

    The squared cosines of two random directions have the mean 1 / size, and phi sums i * j of them over min(i, j).
    """
    return max(i, j) / size


def _vectors(found: Decomposition, count: int, side: Side) -> torch.Tensor:
    vectors = found.left if side == "left" else found.right.mT
    if not 1 <= count <= vectors.shape[1]:
        raise StateError(f"{count} directions of {vectors.shape[1]} are asked for", hint="ask for fewer")
    return vectors[:, :count].double()
