"""What an adapter says of itself by factors, checked before anything is computed with it."""

from __future__ import annotations

import torch

from surgery.adapter import Adapter
from surgery.adapter.factors import Factors
from surgery.architecture import Site
from surgery.errors import PluginError
from surgery.operation.blame import failure, named

__all__ = ["said_factors"]

_HINT = "down (..., rank, fan_in), up (..., fan_out, rank), rows (..., fan_out), columns (..., fan_in)"


def said_factors(parameter: str, adapter: Adapter, site: Site) -> Factors | None:
    """Return the adapter's factors, or None where it says none.

    Raises:
        PluginError: asking for them failed, or they do not fit the site.
    """
    method = f"factors({parameter!r})"
    try:
        found: object = adapter.factors(parameter)
    except Exception as error:
        raised = failure(method, adapter, site.key, error)
        if raised is error:
            raise
        raise raised from error
    if found is None:
        return None
    where = f"{named([adapter])} on {site.key}"
    if not isinstance(found, Factors):
        raise PluginError(f"{method} must return Factors or None, not {type(found).__name__}", where)
    if not _fits(found, site):
        what = f"{method} do not fit {site.experts or 'one'} map(s) of ({site.fan_out}, {site.fan_in})"
        raise PluginError(what, where, _HINT)
    return found


def _fits(factors: Factors, site: Site) -> bool:
    if (factors.up is None) != (factors.down is None):
        return False
    given: tuple[object, ...] = (factors.up, factors.down, factors.rows, factors.columns)
    if not all(tensor is None or isinstance(tensor, torch.Tensor) for tensor in given):
        return False
    sizes: list[tuple[torch.Tensor | None, tuple[int, ...]]] = [
        (factors.rows, (site.fan_out,)),
        (factors.columns, (site.fan_in,)),
    ]
    if factors.up is not None and factors.down is not None:
        rank = factors.down.shape[-2] if factors.down.dim() > 1 else 0
        sizes += [(factors.up, (site.fan_out, rank)), (factors.down, (rank, site.fan_in))]
    shapes = [(tuple(tensor.shape), shape) for tensor, shape in sizes if tensor is not None]
    return all(found == shape or (site.experts and found == (site.experts, *shape)) for found, shape in shapes)
