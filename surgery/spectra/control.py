"""The control of every figure: a random change of the same size."""

from __future__ import annotations

import torch

__all__ = ["random_change"]


def random_change(
    shape: tuple[int, int], norm: float, generator: torch.Generator, rank: int | None = None
) -> torch.Tensor:
    """Return a random (m, n) float64 matrix of Frobenius norm `norm` and, where it is given, of rank `rank`.

    Its singular vectors are uniformly random: entries are Gaussian, or those of the two factors are.

    Args:
        shape: (m, n).
        norm: what |M| is to be.
        generator: where it is drawn from.
        rank: of the change that it stands beside, where that is of low rank; 0 gives zeros.
    """
    rows, columns = shape
    if rank is None or rank >= min(shape):
        drawn = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    else:
        up = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
        drawn = up @ torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    size = float(torch.linalg.vector_norm(drawn))
    return drawn * (norm / size) if size else drawn
