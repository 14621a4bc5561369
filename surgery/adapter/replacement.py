"""The adapter that replaces a parameter by a trainable copy of itself."""

from __future__ import annotations

import torch
from torch import nn

from surgery.adapter.module import Adapter
from surgery.architecture import Site

__all__ = ["ReplacementAdapter"]


class ReplacementAdapter(Adapter):
    """Owns one tensor of the site's shape and dtype, which starts as the pristine one and takes its place.

    It is kept contiguous in the orientation that the host stores: optimizers are slow on transposed tensors.
    """

    replaces = True

    def __init__(self, site: Site, pristine: torch.Tensor) -> None:
        super().__init__(site)
        # No further copy: `build` is given tensors of its own.
        self.value = nn.Parameter(self._turn(pristine.detach()).contiguous())

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        if weight is pristine:
            return self._turn(self.value).to(weight.dtype)
        # On top of other adapters it counts as the change that it made to the base. What it left alone stays as it
        # is: an infinity minus itself would be NaN.
        value = self._turn(self.value).to(weight.dtype)
        return torch.where(value == pristine, weight, weight + (value - pristine))

    def _turn(self, tensor: torch.Tensor) -> torch.Tensor:
        """From (fan_out, fan_in) to the stored orientation and back."""
        return tensor.mT if self.site.is_transposed else tensor
