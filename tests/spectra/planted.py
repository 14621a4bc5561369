"""Matrices whose singular values and vectors are known because they were put there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["orthogonal", "planted"]


def orthogonal(size: int, seed: int) -> torch.Tensor:
    """A random orthogonal matrix, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def planted(rows: int, columns: int, values: Sequence[float], seed: int = 0) -> torch.Tensor:
    """A (rows, columns) matrix with these singular values and random singular vectors."""
    count = len(values)
    left, right = orthogonal(rows, seed)[:, :count], orthogonal(columns, seed + 1)[:, :count]
    return (left * torch.tensor(values, dtype=torch.float64)) @ right.mT
