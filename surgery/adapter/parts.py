"""Helpers for adapters that act on a host's output, whole or in part."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from surgery.architecture import Site

__all__ = ["add_update", "spread_parts"]


def add_update(
    output: torch.Tensor, low: torch.Tensor, matrix: torch.Tensor, scale: float, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return output + scale * (low @ matrix^T + bias) in the output's dtype.

    Args:
        output: (..., n).
        low: (..., k).
        matrix: (n, k).
        scale: factor of everything that is added.
        bias: (n), or None.
    """
    if output.dtype != low.dtype or bias is not None:
        return output + (torch.nn.functional.linear(low, matrix, bias) * scale).to(output.dtype)
    # One fused product and sum. Not in place: writing into a view makes autograd copy the whole gradient.
    flat = torch.addmm(output.reshape(-1, output.shape[-1]), low.reshape(-1, low.shape[-1]), matrix.t(), alpha=scale)
    return flat.view(output.shape)


def spread_parts(parts: Sequence[tuple[Site, torch.Tensor]], features: int) -> torch.Tensor:
    """Return a (..., features, sum of k) matrix: each part's (..., fan_out, k) one at its site's rows, else zero.

    Parts of one fused weight are then applied as one product, whose other features get nothing.

    Args:
        parts: sites of one host with their matrices, or stacks of matrices.
        features: all output features of the host.
    """
    columns = []
    for site, matrix in parts:
        assert site.slice is not None
        span = site.slice.span()
        if span is not None:
            columns.append(torch.nn.functional.pad(matrix, (0, 0, span[0], features - span[0] - span[1])))
        else:
            index = torch.tensor(site.slice.indices(), device=matrix.device)
            columns.append(_zeros(matrix, features).index_copy(-2, index, matrix))
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)


def _zeros(matrix: torch.Tensor, features: int) -> torch.Tensor:
    return matrix.new_zeros(*matrix.shape[:-2], features, matrix.shape[-1])
