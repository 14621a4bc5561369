"""A part of what was learned: the model at W0 + t (W - W0), for adapters of any type; no tensor of it is written to.

Wortsman et al. 2021 (arXiv 2109.01903) walk this line between a base and its tuned weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Self

import torch

from surgery.adapter import Adapter
from surgery.architecture import Site
from surgery.errors import StateError
from surgery.operation.fold import Link, fold_chain
from surgery.operation.host import HostState
from surgery.operation.operation import Operation
from surgery.planning.live import STATE_CHILD

__all__ = ["blended", "change_norm"]

_Groups = tuple[tuple[Adapter, ...], ...]


@contextmanager
def blended(operation: Operation, share: float, kept: Collection[str] = ()) -> Iterator[None]:
    """Within the block the model computes at W0 + share (W - W0), W being what the adapters make of W0.

    At 1 it is the operated model and at 0 the base, bit for bit. In between, adapters that act on a host's output are
    blended there, y0 + share (y - y0), in the dtype of the output; parameters that are folded are blended in float32
    at least, and rounded once to the base's dtype. Where two adapters that do not both add meet in one host (a scale
    on the output of a tuned bias), each is blended by itself: the ends are the same, the way between is no line.

    Args:
        operation: its adapters are not merged. Nothing is trained in the block.
        share: t, from 0 to 1.
        kept: full names of parameters that stay as the adapters have them, such as a new head's.

    Raises:
        StateError: an adapter is merged.
        ValueError: a share outside of 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies between 0 and 1, not {share}")
    if operation.merged:
        raise StateError("a merged adapter cannot be blended", hint="op.unmerge() first")
    hosts = tuple(operation.body.hosts.values())
    before = [(host, host.activations, host.overrides) for host in hosts]
    folds: dict[tuple[int, ...], tuple[Link, ...]] = {}
    try:
        if share < 1:
            for host in hosts:
                _blend(host, share, kept, folds)
        yield
    finally:
        for host, activations, overrides in before:
            host.set_activations(activations)
            host.__dict__["overrides"] = overrides


def change_norm(operation: Operation, kept: Collection[str] = ()) -> tuple[float, float]:
    """Return (|W - W0|, |W0|), Frobenius norms over all parameters of the model but `kept`, in float64.

    |W0| is of the whole model and not of the adapted part, so that adapters of different reach can be compared.
    """
    change, base = [], []
    for slot in operation.body.slots.values():
        chain = slot.chain(operation.names)
        if chain and slot.name not in kept:
            pristine = _wide(slot.pristine())
            with torch.no_grad():
                folded = fold_chain(slot.owners[0].parameter, pristine, chain)
            change.append(_square(folded - pristine))
    pristines = {id(slot.live): slot.pristine() for slot in operation.body.slots.values()}
    for name, parameter in operation.model.named_parameters():
        if name not in kept and STATE_CHILD not in name.split("."):
            base.append(_square(_wide(pristines.get(id(parameter), parameter.detach()))))
    return math.sqrt(math.fsum(change)), math.sqrt(math.fsum(base))


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    # MPS has no float64.
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def _square(tensor: torch.Tensor) -> float:
    return float(torch.where(torch.isfinite(tensor), tensor, 0.0).square().sum())


def _blend(
    host: HostState, share: float, kept: Collection[str], folds: dict[tuple[int, ...], tuple[Link, ...]]
) -> None:
    stay: _Groups = tuple(group for group in host.activations if group[0].site.name in kept)
    go: _Groups = tuple(group for group in host.activations if group[0].site.name not in kept)
    overrides: dict[str, tuple[Link, ...]] = {}
    for parameter, chain in host.overrides.items():
        if not chain or chain[0][1].name in kept:
            overrides[parameter] = chain
        elif share > 0:
            # One for all owners of a tied tensor: it is computed once.
            key = tuple(id(adapter) for adapter, _ in chain)
            overrides[parameter] = folds.setdefault(key, _part_of_fold(chain, share))
    host.__dict__["overrides"] = overrides
    part: _Groups = ((_PartOfOutput(go, share),),) if go and share > 0 else ()
    host.set_activations((*part, *stay))


def _part_of_fold(chain: tuple[Link, ...], share: float) -> tuple[Link, ...]:
    # The site of the whole stored parameter: it is neither cut nor turned for this fold.
    site = replace(chain[0][1], slice=None, host="other")
    return ((_PartOfFold(site, chain, share), site),)


class _PartOfFold(Adapter):
    """Stands for the folds of a chain, taken to a share. It owns no tensor; what it computes is kept for the block."""

    def __init__(self, site: Site, chain: tuple[Link, ...], share: float) -> None:
        super().__init__(site)
        self.__dict__.update(_chain=chain, _share=share, _value=None)

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        if self.__dict__["_value"] is None:
            folded = fold_chain(parameter, pristine, self.__dict__["_chain"])
            wide = torch.promote_types(pristine.dtype, torch.float32)
            value = torch.lerp(pristine.to(wide), folded.to(wide), self.__dict__["_share"])
            # Where nothing was learned stand the base's very bits, NaN and inf included.
            same = folded == pristine
            self.__dict__["_value"] = torch.where(same, pristine, value.to(pristine.dtype)).detach()
        found: torch.Tensor = self.__dict__["_value"]
        return found


class _PartOfOutput(Adapter):
    """Stands for all groups that act on a host's output, taken to a share."""

    activates = True

    def __init__(self, groups: _Groups, share: float) -> None:
        super().__init__(groups[0][0].site)
        self.__dict__.update(_groups=groups, _share=share)

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    @classmethod
    def activate(cls, group: Sequence[Self], inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        base = output.clone()  # an adapter may write to what it is given
        for inner in group[0].__dict__["_groups"]:
            output = type(inner[0]).activate(inner, inputs, output)
        return torch.lerp(base, output.to(base.dtype), group[0].__dict__["_share"])
