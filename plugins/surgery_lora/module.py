"""The trainable tensors of one LoRA edit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import nn
from torch.nn import functional as F

from surgery import Adapter, Site, add_to_part

if TYPE_CHECKING:
    from surgery_lora import LoraOptions


class LoraAdapter(Adapter):
    """A (rank, fan_in) and B (fan_out, rank), float32 unless the base is float64; optionally a bias (fan_out)."""

    activates = True

    def __init__(self, site: Site, options: LoraOptions, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__(site)
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        self.A = nn.Parameter(_initial(options, site.fan_in, generator).to(kept))
        self.B = nn.Parameter(torch.zeros(site.fan_out, options.rank, dtype=kept))
        self.bias = nn.Parameter(torch.zeros(site.fan_out, dtype=kept)) if options.bias else None
        self.scale = options.scale
        self.dropout = options.dropout

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        if parameter == "bias":
            assert self.bias is not None
            return weight + self.scale * self.bias.to(weight.dtype)
        wide = torch.promote_types(weight.dtype, self.A.dtype)
        return weight + self.scale * (self.B.to(wide) @ self.A.to(wide))

    @classmethod
    def activate(cls, group: Sequence[Self], inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        first = group[0]
        if first.site.host == "embedding":
            return add_to_part(output, first.site, F.embedding(inputs, first.A.t()) @ first.B.t(), first.scale)
        x = inputs if inputs.dtype == first.A.dtype else inputs.to(first.A.dtype)
        # One mask and one skinny product for all parts of one fused weight: they share their input.
        x = F.dropout(x, first.dropout, first.training)
        stacked = first.A if len(group) == 1 else torch.cat([adapter.A for adapter in group])
        low = F.linear(x, stacked).split([adapter.A.shape[0] for adapter in group], dim=-1)
        for adapter, narrow in zip(group, low, strict=True):
            output = add_to_part(output, adapter.site, narrow, adapter.scale, adapter.B, adapter.bias)
        return output


def _initial(options: LoraOptions, fan_in: int, generator: torch.Generator) -> torch.Tensor:
    shape = (options.rank, fan_in)
    if options.init == "zeros":
        return torch.zeros(shape)
    if options.init == "gaussian":
        return torch.randn(shape, generator=generator) * options.init_std
    if options.init == "orthogonal":
        return nn.init.orthogonal_(torch.empty(shape), generator=generator)
    # kaiming_uniform(a=sqrt(5)), as in the paper's code: uniform in +-1/sqrt(fan_in)
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)
