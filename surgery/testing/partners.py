"""Two toy adapter types that others are put beside: one that merely adds to a weight, and one that scales it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn

from surgery.adapter import Adapter, AdapterType
from surgery.adapter.parts import add_update, spread_parts
from surgery.architecture import Site
from surgery.spec import Options

__all__ = ["PARTNERS"]


class _Adding(Adapter):
    """W + u v^T, on the host's output where that is possible."""

    activates = True
    adds = True

    def __init__(self, site: Site, dtype: torch.dtype) -> None:
        super().__init__(site)
        self.v = nn.Parameter(torch.full((site.fan_in,), 0.1, dtype=dtype))
        self.u = nn.Parameter(torch.zeros(site.fan_out, dtype=dtype))

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return weight + torch.outer(self.u.to(weight.dtype), self.v.to(weight.dtype))

    @classmethod
    def activate(cls, group: Sequence[Self], inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        low = inputs.to(group[0].v.dtype) @ torch.stack([adapter.v for adapter in group], dim=1)
        columns = [(adapter.site, adapter.u.unsqueeze(1)) for adapter in group]
        whole = columns[0][1] if group[0].site.slice is None else spread_parts(columns, output.shape[-1])
        return add_update(output, low, whole, scale=1.0)


class _Scaling(Adapter):
    """diag(1 + s) (W, b), on the host's output where that is possible."""

    activates = True

    def __init__(self, site: Site, dtype: torch.dtype) -> None:
        super().__init__(site)
        self.s = nn.Parameter(torch.zeros(site.fan_out, dtype=dtype))

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        factor = 1 + self.s.to(weight.dtype)
        return weight * (factor if parameter == "bias" else factor.unsqueeze(1))

    @classmethod
    def activate(cls, group: Sequence[Self], inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        columns = [(adapter.site, adapter.s.unsqueeze(1)) for adapter in group]
        whole = columns[0][1] if group[0].site.slice is None else spread_parts(columns, output.shape[-1])
        return (output * (1 + whole.sum(1))).to(output.dtype)


class _Partner(AdapterType[Options]):
    def claims(self, site: Site) -> bool:
        return site.host in ("linear", "conv1d") and site.parameter == "weight"


class _AddingType(_Partner):
    name = "partner-adding"
    summary = "one outer product"

    def parameters(self, site: Site, options: Options) -> int:
        return site.fan_in + site.fan_out

    def build(
        self, site: Site, options: Options, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        return _Adding(site, getattr(torch, self.trainable_dtype(site)))


class _ScalingType(_Partner):
    name = "partner-scaling"
    summary = "one factor for each output"

    def companions(self, site: Site, options: Options, available: Collection[str]) -> tuple[str, ...]:
        return ("bias",) if "bias" in available else ()

    def parameters(self, site: Site, options: Options) -> int:
        return site.fan_out

    def build(
        self, site: Site, options: Options, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        return _Scaling(site, getattr(torch, self.trainable_dtype(site)))


PARTNERS: tuple[AdapterType[Any], ...] = (_AddingType(), _ScalingType())
"""An adapter that keeps its promises keeps them beside these, merged and live, whatever the names."""
