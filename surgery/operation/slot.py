"""A slot: one edited tensor of the model, whoever owns it, with the adapters that act on it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import nn

from surgery.adapter import Adapter
from surgery.architecture import Site
from surgery.errors import DriftError
from surgery.operation.bits import Expected, checksum
from surgery.operation.blame import named
from surgery.operation.fold import Link
from surgery.operation.host import HostState
from surgery.operation.originals import Original
from surgery.planning.live import STATE_CHILD

__all__ = ["Member", "Owner", "Slot"]


@dataclass(frozen=True)
class Owner:
    """One module that reads the tensor, under one name."""

    path: str
    module: nn.Module
    parameter: str

    @property
    def name(self) -> str:
        return f"{self.path}.{self.parameter}" if self.path else self.parameter

    @property
    def state(self) -> HostState:
        state = self.module._modules[STATE_CHILD]
        assert isinstance(state, HostState)
        return state


@dataclass(frozen=True)
class Member:
    """One adapter that acts on the tensor.

    `folds` tells that the host must compute with the folded parameter (the override channel); otherwise the adapter
    acts on the host's output.
    """

    adapter_name: str
    adapter: Adapter
    site: Site
    folds: bool

    @property
    def order(self) -> tuple[bool, str, str]:
        """Canonical order: folded parameters come before output edits, as they do in a forward; then names."""
        return (not self.folds, self.adapter_name, self.site.key)


@dataclass
class Slot:
    """One edited tensor.

    Attributes:
        name: the tensor's first name in the model.
        owners: the modules that read it through this slot: one, all names of a tied tensor, or the one cut off.
        parameter: the `nn.Parameter` that held it when the operation began.
        is_cut: whether the slot cuts one name off a tied tensor, so that a merge must not write to the others.
        members: adapters that act on it.
        expected: checksum of what should be live now; large tensors are still being summed when an operation begins.
        original: how to get the pristine tensor back while a merge is live; None while it is live itself.
    """

    name: str
    owners: tuple[Owner, ...]
    parameter: nn.Parameter
    is_cut: bool
    members: list[Member] = field(default_factory=list)
    expected: Expected | None = None
    original: Original | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that the pristine tensor has in the model, this slot's own first."""
        tied = (name for member in self.members for name in member.site.tied)
        return tuple(dict.fromkeys((self.name, *(owner.name for owner in self.owners), *tied)))

    @property
    def live(self) -> nn.Parameter:
        """The parameter that the first owner holds now."""
        owner = self.owners[0]
        parameter = owner.module._parameters.get(owner.parameter)
        if parameter is None:
            raise DriftError(f"{owner.name} is gone", hint="someone deleted it while the model was operated")
        return parameter

    def chain(
        self, names: Collection[str], folding: Collection[str] = (), overtaken: Collection[str] = ()
    ) -> tuple[Link, ...]:
        """Return links in canonical order: of the adapters `names`, and what folds of those that are not merged.

        Args:
            names: adapters with everything that they do.
            folding: adapters whose folded parameters are wanted, and not their output edits.
            overtaken: adapters whose output edits are wanted, as folds.
        """
        chosen = [
            member
            for member in self.members
            if member.adapter_name in names or member.adapter_name in (folding if member.folds else overtaken)
        ]
        return tuple((member.adapter, member.site) for member in sorted(chosen, key=lambda member: member.order))

    def check(self) -> None:
        """Raise DriftError when somebody else replaced, moved or changed the live tensor."""
        live = self.live
        if self.original is None and live is not self.parameter:
            raise DriftError(f"the parameter {self.name} was replaced by another object", hint=_RESTORE)
        for owner in self.owners[1:]:
            if owner.module._parameters.get(owner.parameter) is not live:
                raise DriftError(f"{owner.name} is no longer tied to {self.name}", hint=_RESTORE)
        if self.expected is not None and checksum(live) != self.expected.result():
            raise DriftError(f"the bits (or dtype, or shape) of {self.name} have changed", hint=self._restore())

    def _restore(self) -> str:
        """What to do where bits have changed. A fold that writes to the base past autograd is seen here only."""
        suspects = named(member.adapter for member in self.members if member.folds)
        return f"{_RESTORE}; an adapter's fold may have written to it: {suspects}" if suspects else _RESTORE

    def pristine(self) -> torch.Tensor:
        """Return the base's tensor on the live tensor's device; read only."""
        return self.live.detach() if self.original is None else self.original.restore(self.live.detach())


_RESTORE = "put back what was changed since the operation began, or load the base again"
