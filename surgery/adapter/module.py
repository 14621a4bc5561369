"""An adapter: the `nn.Module` that owns every trainable tensor of one edit, and never touches the host model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import nn

from surgery.adapter.factors import Factors
from surgery.architecture import Site

__all__ = ["Adapter"]


class Adapter(nn.Module, ABC):
    """One edit's trainable tensors, and what they do to the site.

    `fold` alone is enough: while the adapter is active the host computes with the folded parameter. An adapter that
    can act on the host's output more cheaply also sets `activates` and implements `activate`; both must mean the
    same function. One that `factors` can describe is spared the folding of whole weights of experts.

    Attributes:
        activates: whether `activate` is implemented. It is used for hosts whose forward is known (`nn.Linear`,
            `Conv1D`, `nn.Embedding`); any other host gets the folded parameter.
        adds: whether `fold` adds the same to a parameter whatever its value so far is. Such adapters commute: one
            may act on the output after another was merged. An activating adapter that does not say so is folded
            instead where a merged one comes after it.
        replaces: whether the folded parameter does not depend on the pristine one, so that loading need not insist
            on the same pristine bits.
    """

    activates: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    replaces: ClassVar[bool] = False

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site

    @abstractmethod
    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        """Return the parameter with this adapter folded in. Differentiable; must not write to its arguments.

        Args:
            parameter: local name of the parameter (`weight`, or a companion such as `bias`).
            weight: the value so far, other adapters' folds included: (fan_out, fan_in) for matrices. It is the very
                object `pristine` when nothing was folded before. In a merge it is float64.
            pristine: the base's value, same shape and dtype as `weight`.
        """

    def factors(self, parameter: str) -> Factors | None:
        """Return what `fold(parameter, ...)` does as small factors, or None where it cannot be said so.

        A 3-D weight of experts is then never folded in a forward: each expert's product gets the factors' products
        beside it. `fold` must mean the same, dropout apart; `Factors.fold` computes it.

        Args:
            parameter: local name of the parameter, as for `fold`.
        """
        return None

    @classmethod
    def activate(cls, group: Sequence[Self], inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return the host's output with the adapters of `group` applied.

        Args:
            group: the active adapters of this class and adapter name on one host: one, or one for each part.
            inputs: what the host was called with, (..., fan_in), or (...) integer ids for an embedding.
            output: what the host returned, (..., all fan_out of the host). May be written to in place.
        """
        raise NotImplementedError(f"{cls.__name__} sets `activates` and does not implement `activate`")
