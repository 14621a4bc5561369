"""One linear map before and after tuning, and where such pairs come from while models are in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from surgery.architecture import Site
from surgery.errors import PlanError, StateError, nearest
from surgery.operation import Operation
from surgery.operation.fold import canonical_view, fold_chain
from surgery.planning import sites
from surgery.registry import Registry

__all__ = ["Matrix", "cut", "matrices_of_models", "matrices_of_operation"]

_LARGE = 1 << 24
"""Elements from which on a matrix is looked at in float32: float64 would be twice the weight itself, or more."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """One linear map, whole or a part of a fused weight, or one expert's, as (fan_out, fan_in).

    Attributes:
        site: where it is.
        expert: which one, in a weight of experts; else None.
        base, tuned: float64, or float32 where they are large.
    """

    site: Site
    expert: int | None
    base: torch.Tensor
    tuned: torch.Tensor

    @property
    def name(self) -> str:
        """A unique name: the site's key, and the expert."""
        return self.site.key if self.expert is None else f"{self.site.key}[{self.expert}]"

    @property
    def shape(self) -> tuple[int, int]:
        """(fan_out, fan_in)."""
        return self.base.shape[0], self.base.shape[1]

    @property
    def change(self) -> torch.Tensor:
        """What was added: tuned - base."""
        return self.tuned - self.base


def cut(site: Site, base: torch.Tensor, tuned: torch.Tensor) -> Iterator[Matrix]:
    """Yield the matrices of a site, of two parameters as stored, one at a time.

    Raises:
        StateError: a parameter that is not floating point, or that holds NaN or inf.
    """
    views = [canonical_view(one.detach(), site) for one in (base, tuned)]
    for index in range(site.experts or 1):
        pair = [_wide(view[index] if site.experts else view, site, which)
                for view, which in zip(views, ("the base", "the tuned weight"), strict=True)]  # fmt: skip
        yield Matrix(site, index if site.experts else None, *pair)


def matrices_of_models(base: nn.Module, tuned: nn.Module, registry: Registry | None = None) -> Iterator[Matrix]:
    """Yield every matrix of two models of one architecture, tied ones once.

    Raises:
        PlanError: the tuned model lacks a parameter, or has one of another shape.
    """
    ours, theirs = (dict(model.named_parameters(remove_duplicate=False)) for model in (base, tuned))
    seen: set[tuple[int, str]] = set()
    for site in sites(base, registry):
        key = id(ours[site.name]), site.role if site.slice else ""
        if not (site.is_matrix or site.experts) or key in seen:
            continue
        seen.add(key)
        if site.name not in theirs:
            raise PlanError(f"the tuned model has no {site.name!r}", hint=nearest(site.name, theirs))
        if ours[site.name].shape != theirs[site.name].shape:
            shapes = f"{list(ours[site.name].shape)} and {list(theirs[site.name].shape)}"
            raise PlanError(f"{site.name} has the shapes {shapes}", hint="give two models of one architecture")
        yield from cut(site, ours[site.name], theirs[site.name])


@torch.no_grad()
def matrices_of_operation(op: Operation, name: str = "default") -> Iterator[Matrix]:
    """Yield the matrices that the adapter `name` changes: one base in memory, the tuned one made tensor by tensor.

    Parts of fused weights are told apart whatever the adapter does: a weight that is replaced as a whole gives query,
    key and value each on its own. Adapters beside `name` have no part in it.

    Raises:
        StateError: no such adapter, or it holds NaN or inf.
    """
    if name not in op.body.built:
        raise StateError(f"there is no adapter {name!r}", hint=nearest(name, op.names))
    chains = {}
    for slot in op.body.slots.values():
        chain = slot.chain([name])
        if chain:
            chains[slot.name] = slot, chain
    for site in sites(op.model, op.registry):
        if site.name not in chains or not (site.is_matrix or site.experts):
            continue
        slot, chain = chains[site.name]
        pristine = slot.pristine()
        wide = pristine.to(torch.float64 if pristine.numel() < _LARGE else torch.float32)
        yield from cut(site, pristine, fold_chain(slot.owners[0].parameter, wide, chain))


def _wide(tensor: torch.Tensor, site: Site, which: str) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise StateError(f"{which} is {tensor.dtype}, which is not floating point", site.name)
    # Contiguous: sums over other strides round otherwise, and the same weights would give other last digits.
    wide = tensor.to("cpu", torch.float64 if tensor.numel() < _LARGE else torch.float32).contiguous()
    if not bool(torch.isfinite(wide).all()):
        raise StateError(f"{which} holds NaN or inf", site.key, "repair or retrain it: nothing can be said of it")
    return wide
