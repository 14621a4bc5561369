"""The adapter that replaces a parameter by a trainable copy of itself."""

from __future__ import annotations

import torch
from torch import nn

from surgery.adapter.module import Adapter
from surgery.architecture import Site

__all__ = ["ReplacementAdapter"]


class ReplacementAdapter(Adapter):
    """Owns one tensor of the site's shape and dtype, which starts as the pristine one and takes its place."""

    replaces = True

    def __init__(self, site: Site, pristine: torch.Tensor) -> None:
        super().__init__(site)
        # Strides are kept: a transposed host then gets the memory layout it stores, in values and in gradients.
        self.value = nn.Parameter(pristine.detach().clone(memory_format=torch.preserve_format))

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        if weight is pristine:
            return self.value
        # On top of other adapters it counts as the change that it made to the base.
        return weight + (self.value.to(weight.dtype) - pristine)
