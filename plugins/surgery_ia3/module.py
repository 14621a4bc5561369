"""The trainable vector of one IA3 edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import nn

from surgery import Adapter, Factors, Site, spread_parts


class InputFactors(Adapter):
    """`scale` (fan_in), for experts that do not share (experts * fan_in): W diag(scale).

    Flat, also where it holds one vector for each expert: optimizers know by its one axis that it does not decay.
    """

    def __init__(self, site: Site, size: int) -> None:
        super().__init__(site)
        self.scale = nn.Parameter(torch.ones(size, dtype=torch.float64 if site.dtype == "float64" else torch.float32))

    def vector(self, features: int) -> torch.Tensor:
        """Return (features), or (experts, features)."""
        return self.scale if self.scale.numel() == features else self.scale.view(-1, features)

    def factors(self, parameter: str) -> Factors:
        return Factors(columns=self.vector(self.site.fan_in))

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return self.factors(parameter).fold(weight)


class OutputFactors(InputFactors):
    """`scale` (fan_out), for experts that do not share (experts * fan_out): diag(scale) (W, b)."""

    activates = True

    def factors(self, parameter: str) -> Factors:
        return Factors(rows=self.vector(self.site.fan_out))

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        if parameter.endswith("bias"):
            return weight * self.vector(self.site.fan_out).to(torch.promote_types(weight.dtype, self.scale.dtype))
        return super().fold(parameter, weight, pristine)

    @classmethod
    def activate(cls, group: Sequence[Self], inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        scale: torch.Tensor = group[0].scale
        if group[0].site.slice is not None:
            columns = [(adapter.site, (adapter.scale - 1).unsqueeze(1)) for adapter in group]
            scale = 1 + spread_parts(columns, output.shape[-1]).sum(1)
        return (output * scale).to(output.dtype)
