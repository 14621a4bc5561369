"""Folding adapters into a parameter: every plugin sees its own part, as (fan_out, fan_in), whatever the host stores."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from surgery.adapter import Adapter
from surgery.architecture import Site
from surgery.errors import PluginError
from surgery.operation.blame import failure, named

__all__ = ["Link", "canonical_view", "fold_chain", "refuse_writing"]

Link = tuple[Adapter, Site]
"""One adapter in the chain of a parameter, with the site (or companion) that it changes there."""


def canonical_view(tensor: torch.Tensor, site: Site) -> torch.Tensor:
    """Return the site's part of a stored parameter, matrices as (..., fan_out, fan_in): a view where possible."""
    part = site.slice
    if part is not None:
        span = part.span()
        if span is not None:
            tensor = tensor.narrow(part.axis, *span)
        else:
            tensor = tensor.index_select(part.axis, torch.tensor(part.indices(), device=tensor.device))
    return tensor.mT if site.is_transposed else tensor


def fold_chain(parameter: str, base: torch.Tensor, chain: Sequence[Link]) -> torch.Tensor:
    """Return `base` with every adapter of `chain` folded in, in that order; `base` itself is only read.

    Args:
        parameter: the parameter's local name.
        base: the pristine parameter as stored.
        chain: adapters in canonical order.
    """
    if len(chain) == 1 and chain[0][1].slice is None and not chain[0][1].is_transposed:
        return _folded(*chain[0], parameter, base, base)
    value = base
    touched: set[str] = set()
    for adapter, site in chain:
        pristine = canonical_view(base, site)
        overlaps = any(key == site.name or site.slice is None or key == site.key for key in touched)
        weight = canonical_view(value, site) if overlaps else pristine
        value = _put_back(value, site, _folded(adapter, site, parameter, weight, pristine))
        touched.add(site.key)
    return value


def _folded(adapter: Adapter, site: Site, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
    try:
        folded = adapter.fold(parameter, weight, pristine)
    except Exception as error:
        raised = failure(f"fold({parameter!r})", adapter, site.key, error)
        if raised is error:
            raise
        raise raised from error
    if not isinstance(folded, torch.Tensor) or folded.shape != weight.shape:
        got = list(folded.shape) if isinstance(folded, torch.Tensor) else type(folded).__name__
        raise PluginError(
            f"fold({parameter!r}) must return a tensor of shape {list(weight.shape)}, not {got}",
            f"{named([adapter])} on {site.key}",
        )
    if folded.device != weight.device or folded.layout != weight.layout:
        raise PluginError(
            f"fold({parameter!r}) must return a tensor like its argument ({weight.device}, {weight.layout}), "
            f"not ({folded.device}, {folded.layout})",
            f"{named([adapter])} on {site.key}",
        )
    return folded


def refuse_writing(parameter: str, chain: Sequence[Link]) -> None:
    """Raise PluginError: a fold of `chain` wrote to the base."""
    raise PluginError(
        f"fold wrote to the base's {parameter!r}, which is damaged now",
        f"{named(adapter for adapter, _ in chain)} on {chain[0][1].name}",
        "repair the adapter type, and load the base again",
    )


def _put_back(value: torch.Tensor, site: Site, folded: torch.Tensor) -> torch.Tensor:
    if site.is_transposed:
        folded = folded.mT
    part = site.slice
    if part is None:
        return folded
    folded = folded.to(value.dtype)
    span = part.span()
    if span is not None:
        return torch.slice_scatter(value, folded, part.axis, span[0], span[0] + span[1])
    index = torch.tensor(part.indices(), device=value.device)
    return value.index_copy(part.axis, index, folded)
