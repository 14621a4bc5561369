"""Folding adapters into a parameter: every plugin sees its own part, as (fan_out, fan_in), whatever the host stores."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from surgery.adapter import Adapter
from surgery.architecture import Site

__all__ = ["Link", "canonical_view", "fold_chain"]

Link = tuple[Adapter, Site]
"""One adapter in the chain of a parameter, with the site (or companion) that it changes there."""


def canonical_view(tensor: torch.Tensor, site: Site) -> torch.Tensor:
    """Return the site's part of a stored parameter, as (fan_out, fan_in) for matrices: a view where possible."""
    part = site.slice
    if part is not None:
        span = part.span()
        if span is not None:
            tensor = tensor.narrow(part.axis, *span)
        else:
            tensor = tensor.index_select(part.axis, torch.tensor(part.indices(), device=tensor.device))
    return tensor.t() if site.is_transposed else tensor


def fold_chain(parameter: str, base: torch.Tensor, chain: Sequence[Link]) -> torch.Tensor:
    """Return `base` with every adapter of `chain` folded in, in that order; `base` itself is only read.

    Args:
        parameter: the parameter's local name.
        base: the pristine parameter as stored.
        chain: adapters in canonical order.
    """
    if len(chain) == 1 and chain[0][1].slice is None and not chain[0][1].is_transposed:
        return chain[0][0].fold(parameter, base, base)
    value = base
    touched: set[str] = set()
    for adapter, site in chain:
        pristine = canonical_view(base, site)
        overlaps = any(key == site.name or site.slice is None or key == site.key for key in touched)
        weight = canonical_view(value, site) if overlaps else pristine
        value = _put_back(value, site, adapter.fold(parameter, weight, pristine))
        touched.add(site.key)
    return value


def _put_back(value: torch.Tensor, site: Site, folded: torch.Tensor) -> torch.Tensor:
    if site.is_transposed:
        folded = folded.t()
    part = site.slice
    if part is None:
        return folded
    folded = folded.to(value.dtype)
    span = part.span()
    if span is not None:
        return torch.slice_scatter(value, folded, part.axis, span[0], span[0] + span[1])
    index = torch.tensor(part.indices(), device=value.device)
    return value.index_copy(part.axis, index, folded)
