"""Merging: live = round_once(W + what the active set adds), always from the pristine W, never by subtracting."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch

from surgery.errors import PluginError, StateError
from surgery.operation.bits import rounded
from surgery.operation.blame import named
from surgery.operation.change import Change, steps_of
from surgery.operation.fold import Link, fold_chain
from surgery.operation.slot import Slot

__all__ = ["MergeRecord", "merged_tensor", "merged_value"]


@dataclass(frozen=True)
class MergeRecord:
    """What merging did to one tensor, and what storing it in the base's dtype lost.

    Attributes:
        name: the tensor's name.
        delta_rel: |dW| / |W| (Frobenius norms).
        realised_delta_rel_err: |stored dW - dW| / |dW|: how far the stored change is from the computed one.
        unmoved: share of elements that should have moved and did not.
        elements: number of elements.
    """

    name: str
    delta_rel: float
    realised_delta_rel_err: float
    unmoved: float
    elements: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode(mode=False)
@torch.no_grad()
def merged_value(slot: Slot, names: Collection[str]) -> tuple[torch.Tensor, MergeRecord]:
    """Return the live tensor for the active set `names`, and the record of what that does.

    The sum is taken in float64 in canonical order, so it depends on the set alone; it is rounded once. Elements that
    the adapters leave where they are keep their very bits (-0 and NaN payloads included).

    Raises:
        StateError: an adapter holds NaN or inf, or a finite weight would become NaN or inf.
    """
    chain = slot.chain(names)
    pristine = slot.pristine()
    is_base_finite = bool(torch.isfinite(pristine).all())
    for adapter, site in chain:
        for name, tensor in adapter.named_parameters():
            # What takes a parameter's place may hold the NaN and inf that the base itself holds.
            is_excused = adapter.replaces and not is_base_finite
            if not is_excused and not bool(torch.isfinite(tensor).all()):
                raise StateError(f"the adapter's tensor {name!r} holds NaN or inf", site.key, "nothing was merged")
    device = pristine.device
    if any(tensor.device != device for adapter, _ in chain for tensor in adapter.parameters()):
        raise StateError("the adapter is on another device than its host", slot.name, "move the model as a whole")
    return merged_tensor(slot.name, slot.owners[0].parameter, pristine, chain)


@torch.no_grad()
def merged_tensor(
    name: str, parameter: str, pristine: torch.Tensor, chain: Sequence[Link]
) -> tuple[torch.Tensor, MergeRecord]:
    """Return `pristine` with the adapters of `chain` folded in, rounded once, and the record; see `merged_value`."""
    by_rows = _by_rows(name, parameter, pristine, chain)
    if by_rows is not None:
        return by_rows
    # MPS has no float64.
    wide = pristine.to(torch.float32 if pristine.device.type == "mps" else torch.float64, copy=True)
    version = wide._version
    folded = fold_chain(parameter, wide, chain)
    if wide._version != version or folded.dtype != wide.dtype:
        _refuse_fold(name, chain, folded, wide)
    value, is_lost = rounded(pristine, wide, folded)
    if bool(is_lost.any()):
        raise StateError(
            f"merging would turn finite weights into NaN or inf in {pristine.dtype}",
            name,
            "nothing was merged; use a wider dtype or a smaller scale",
        )
    return value.contiguous(), _record(name, wide, folded, value)


def _by_rows(
    name: str, parameter: str, pristine: torch.Tensor, chain: Sequence[Link]
) -> tuple[torch.Tensor, MergeRecord] | None:
    """Merge as files are merged, by factors, so that both give the same bits; None where factors do not say it."""
    if pristine.device.type != "cpu" or pristine.dim() not in {2, 3} or not pristine.is_floating_point():
        return None
    value = torch.empty(pristine.shape, dtype=pristine.dtype)
    folded = torch.empty(pristine.shape, dtype=torch.float64)
    stacked = pristine.dim() == 3
    for index in range(pristine.shape[0] if stacked else 1):
        own, into, unrounded = (t[index] if stacked else t for t in (pristine, value, folded))
        shape = (own.shape[0], own.shape[1])
        steps = steps_of(parameter, chain, index, shape)
        if steps is None:
            return None
        change = Change(steps, shape)
        try:
            into.copy_(change.merge(own, 0))
        except StateError as error:
            what = error.what.replace("a finite weight", "finite weights")
            raise StateError(what, name, error.hint) from error
        unrounded.copy_(change.unrounded(own, 0))
    return value, _record(name, pristine.double(), folded, value)


def _refuse_fold(name: str, chain: Sequence[Link], folded: torch.Tensor, wide: torch.Tensor) -> NoReturn:
    suspects = named(adapter for adapter, _ in chain)
    what = "wrote to its argument" if folded.dtype == wide.dtype else f"returned {folded.dtype} for {wide.dtype}"
    raise PluginError(f"fold {what}", f"{suspects} on {name}", "nothing was merged; repair the adapter type")


def _record(name: str, wide: torch.Tensor, folded: torch.Tensor, value: torch.Tensor) -> MergeRecord:
    is_finite = torch.isfinite(wide)
    zero = torch.zeros((), dtype=wide.dtype, device=wide.device)
    delta = torch.where(is_finite, folded - wide, zero)
    stored = torch.where(is_finite, value.to(wide.dtype) - wide, zero)
    norm = float(torch.linalg.vector_norm(delta))
    base = float(torch.linalg.vector_norm(torch.where(is_finite, wide, zero)))
    moves = delta != 0
    moving = int(moves.sum())
    return MergeRecord(
        name=name,
        delta_rel=norm / base if base else (0.0 if norm == 0 else float("inf")),
        realised_delta_rel_err=float(torch.linalg.vector_norm(stored - delta)) / norm if norm else 0.0,
        unmoved=int((moves & (stored == 0)).sum()) / moving if moving else 0.0,
        elements=wide.numel(),
    )
