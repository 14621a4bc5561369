"""The trainable tensors of one LoRA edit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import nn
from torch.nn import functional as F

from surgery import Adapter, Factors, Site, add_update, spread_parts

if TYPE_CHECKING:
    from surgery_lora import LoraOptions


class LoraAdapter(Adapter):
    """A (rank, fan_in) and B (fan_out, rank), float32 unless the base is float64; optionally a bias (fan_out).

    In a weight of experts each expert has its own A and B, stacked along a first axis, unless they share one pair.
    """

    activates = True
    adds = True

    def __init__(self, site: Site, options: LoraOptions, generator: torch.Generator) -> None:
        super().__init__(site)
        kept = torch.float64 if site.dtype == "float64" else torch.float32
        stack = (site.experts,) if site.experts and options.experts == "separate" else ()
        self.A = nn.Parameter(_initial(options, (*stack, options.rank, site.fan_in), generator).to(kept))
        self.B = nn.Parameter(torch.zeros(*stack, site.fan_out, options.rank, dtype=kept))
        self.bias = nn.Parameter(torch.zeros(site.fan_out, dtype=kept)) if options.bias else None
        self.scale, self.dropout = options.scale, options.dropout

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        if parameter == "bias" and self.bias is not None:
            return weight + self.scale * self.bias.to(weight.dtype)
        return self.factors(parameter).fold(weight)

    def factors(self, parameter: str) -> Factors:
        return Factors(self.A, self.B, self.scale, self.dropout)

    @classmethod
    def activate(cls, group: Sequence[Self], inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        first = group[0]
        if first.site.host == "embedding":
            return add_update(output, F.embedding(inputs, first.A.t()), first.B, first.scale)
        # One mask and one skinny product for all parts of one fused weight: they share their input.
        x = F.dropout(inputs.to(first.A.dtype), first.dropout, first.training)
        if first.site.slice is None:
            return add_update(output, F.linear(x, first.A), first.B, first.scale, first.bias)
        spread = spread_parts([(adapter.site, adapter.B) for adapter in group], output.shape[-1])
        biases = [(adapter.site, adapter.bias.unsqueeze(1)) for adapter in group if adapter.bias is not None]
        bias = spread_parts(biases, output.shape[-1]).sum(1) if biases else None
        return add_update(output, F.linear(x, torch.cat([adapter.A for adapter in group])), spread, first.scale, bias)


def _initial(options: LoraOptions, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if options.init == "zeros":
        return torch.zeros(shape)
    if options.init == "gaussian":
        return torch.randn(shape, generator=generator) * options.init_std
    start = torch.empty(shape)
    if options.init == "orthogonal":
        matrices = start.reshape(-1, *shape[-2:]).unbind()
        return torch.stack([nn.init.orthogonal_(one, generator=generator) for one in matrices]).view(shape)
    # kaiming_uniform_(a=sqrt(5)), as in the paper's code: bound sqrt(3) * sqrt(2 / (1 + 5)) / sqrt(fan_in)
    bound = 1 / math.sqrt(shape[-1])
    return start.uniform_(-bound, bound, generator=generator)
