"""Helpers for adapters that act on a host's output, whole or in part."""

from __future__ import annotations

import torch

from surgery.architecture import Site

__all__ = ["add_to_part"]


def add_to_part(
    output: torch.Tensor,
    site: Site,
    value: torch.Tensor,
    scale: float = 1.0,
    matrix: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `output` with scale * (value @ matrix^T + bias) added to the site's features; may write in place.

    Args:
        output: (..., features of the host).
        site: whose part of the features is meant: all of them, unless it is a part of a fused weight.
        value: (..., k), or (..., fan_out) without a matrix.
        scale: factor of everything that is added.
        matrix: (fan_out, k), or None.
        bias: (fan_out), or None.
    """
    if site.slice is None and matrix is not None and bias is None and output.dtype == value.dtype == matrix.dtype:
        # One fused product and sum into the host's fresh output; nothing saves it for a backward pass.
        flat = output.reshape(-1, output.shape[-1])
        flat = flat.addmm_(value.reshape(-1, value.shape[-1]), matrix.t(), alpha=scale)
        return flat.view(output.shape)
    if matrix is not None:
        value = torch.nn.functional.linear(value, matrix, bias)
    update = (value * scale if scale != 1.0 else value).to(output.dtype)
    if site.slice is None:
        return output + update
    span = site.slice.span()
    if span is not None:
        output.narrow(-1, *span).add_(update)
        return output
    index = torch.tensor(site.slice.indices(), device=output.device)
    return output.index_add(-1, index, update)
