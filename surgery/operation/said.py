"""What an adapter says of itself by factors, checked before anything is computed with it."""

from __future__ import annotations

import torch

from surgery.adapter import Adapter
from surgery.adapter.factors import Factors
from surgery.architecture import Site
from surgery.errors import PluginError
from surgery.operation.blame import failure, named

__all__ = ["misfit", "said_factors"]

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
    if wrong := misfit(found, site):
        what = f"{method} do not fit {site.experts or 'one'} map(s) of ({site.fan_out}, {site.fan_in}): {wrong}"
        raise PluginError(what, where, _HINT)
    return found


def misfit(factors: Factors, site: Site) -> str:
    """Return which field of `factors` is not of the shape that `site` wants, and how; empty where all are."""
    up, down = factors.up, factors.down
    fields: dict[str, object] = {"down": down, "up": up, "rows": factors.rows, "columns": factors.columns}
    for name, value in fields.items():
        if value is not None and not isinstance(value, torch.Tensor):
            return f"{name} is no tensor but {type(value).__name__}"
    if up is None or down is None:
        if up is not down:
            return "up is given without down" if down is None else "down is given without up"
        rank = 0
    else:
        if down.dim() < 2:
            return f"down is {tuple(down.shape)}, wanted (rank, {site.fan_in})"
        is_turned = down.shape[-1] != site.fan_in and down.shape[-2] == site.fan_in
        rank = down.shape[-1 if is_turned else -2]
    shapes = {
        "down": (rank, site.fan_in),
        "up": (site.fan_out, rank),
        "rows": (site.fan_out,),
        "columns": (site.fan_in,),
    }
    for name, wanted in shapes.items():
        value = fields[name]
        if not isinstance(value, torch.Tensor):
            continue
        found = tuple(value.shape)
        if found != wanted and not (site.experts and found == (site.experts, *wanted)):
            is_turned = len(wanted) == 2 and found[-2:] == wanted[::-1] and wanted[0] != wanted[1]
            first = f" (or with {site.experts} experts in front)" if site.experts else ""
            return f"{name} is {found}, wanted {wanted}{first}{'; it is transposed' if is_turned else ''}"
    return ""
