"""What is worked on as one: a parameter of the model, its tensors in files, and what adapters do to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from surgery.adapter.replacement import ReplacementAdapter
from surgery.checkpoint.layout import cast_of
from surgery.checkpoint.recast import Recast, holds
from surgery.checkpoint.saved import Acts, SavedAdapter
from surgery.checkpoint.weights import Weights
from surgery.errors import CheckpointError, PluginError, StateError
from surgery.operation.bits import rounded
from surgery.operation.blame import named
from surgery.operation.change import Change
from surgery.operation.merge import merged_tensor
from surgery.planning.checkpoint import Piece
from surgery.planning.headers import TensorHeader

__all__ = ["BLOCK", "Block", "Rows", "Unit", "blocks_of", "changes_for", "refuse_other_predictions", "units_of"]

BLOCK = 1 << 20
"""Elements of a row block: residues are encoded by blocks, so this is part of the format of receipts."""


class Rows(Protocol):
    """A change of one stored matrix; see `surgery.operation.change.Change`."""

    is_sum: bool

    def unrounded(self, weight: torch.Tensor, start: int) -> torch.Tensor: ...

    def merge(
        self, weight: torch.Tensor, start: int, correct: bool, out: torch.Tensor, added: torch.Tensor
    ) -> torch.Tensor: ...

    def predict(self, merged: torch.Tensor, start: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class Unit:
    """One parameter.

    Attributes:
        name: as the model calls it, or the tensor's own name where the model does not use it.
        pieces: the tensors of files that make it up, in the order of its elements.
        old: adapters that are merged into it in the source.
        new: adapters that are to be in the result.
        cast: the dtype that the result has, where it is not the base's.
        was_cast: whether the source has another dtype than the base.
    """

    name: str
    pieces: tuple[Piece, ...]
    old: tuple[SavedAdapter, ...] = ()
    new: tuple[SavedAdapter, ...] = ()
    cast: str = ""
    was_cast: bool = False

    @property
    def is_copied(self) -> bool:
        """Whether nothing is computed."""
        return not (self.old or self.new or self.cast or self.was_cast)


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a tensor of a file, seen as matrices.

    Attributes:
        matrix: which matrix of the parameter.
        row: the first row, of that matrix.
        rows, columns: the shape.
        offset: elements of the tensor before them.
    """

    matrix: int
    row: int
    rows: int
    columns: int
    offset: int


def units_of(weights: Weights, old: Sequence[SavedAdapter], new: Sequence[SavedAdapter], dtype: str = "") -> list[Unit]:
    """Return all units, in the order in which they stand in files; `dtype` is what floating tensors get."""

    def casts(header: TensorHeader) -> tuple[str, bool]:
        return cast_of(header, dtype), weights.stored[header.name].dtype != header.dtype

    units, used = [], set()
    for name, pieces in weights.pieces.items():
        used |= {piece.header.name for piece in pieces}
        before, after = (tuple(one for one in several if name in one.changed) for several in (old, new))
        units.append(Unit(name, pieces, before, after, *casts(pieces[0].header)))
    rest = [header for name, header in weights.headers.items() if name not in used]
    units += [Unit(header.name, (Piece(header),), (), (), *casts(header)) for header in rest]
    return sorted(units, key=lambda unit: (unit.pieces[0].header.file.name, unit.pieces[0].header.start))


def blocks_of(piece: Piece) -> Iterator[Block]:
    """Cut a tensor into row blocks: a function of its shape alone."""
    shape = piece.header.shape
    if not math.prod(shape):
        return
    matrices, rows, columns = _as_matrices(shape)
    step = max(1, BLOCK // columns)
    for index in range(matrices):
        for row in range(0, rows, step):
            offset = (index * rows + row) * columns
            yield Block(piece.matrix + index, piece.row + row, min(step, rows - row), columns, offset)


def _as_matrices(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return how many matrices a tensor is, and their shape: a vector is a column.

    Where there is no element there is no matrix: a header may speak of any number of empty ones.
    """
    if len(shape) == 3:
        return shape[0] if math.prod(shape) else 0, shape[1], shape[2]
    return 1, shape[0] if shape else 1, math.prod(shape[1:])


def changes_for(unit: Unit, adapters: Sequence[SavedAdapter], base: Mapping[str, torch.Tensor] | None) -> list[Rows]:
    """Return what the adapters do to each matrix of the unit.

    Args:
        unit: the unit.
        adapters: those that act on it.
        base: name of a parameter -> the base's tensor, read only where an adapter cannot do with rows alone. Without,
            the changes can predict and no more: what they predict is the same as with it.
    """
    acts = sorted((act for one in adapters for act in one.acts(unit.name, base)), key=lambda act: act.order)
    matrices, shape = _parameter_shape(unit)
    is_said = all(act.is_portable and act.steps(0, shape) is not None for act in acts)
    if not is_said and base is None:
        return [_Unknown() for _ in range(matrices)]
    weighted = next((one for one in adapters if one.factor != 1.0), None)
    if weighted is not None and any(act.steps(0, shape) is None for act in acts):
        folded = [one.name for one in adapters if any(act.steps(0, shape) is None for act in one.acts(unit.name, base))]
        why = "it does more than add"
        if weighted.name not in folded:
            why = f"{folded[0]!r}, on the same parameter, is not said by factors"
        what = f"{weighted.name!r} cannot be weighted: {why}"
        raise StateError(what, unit.name, "leave --weights out")
    if not all(act.steps(0, shape) is not None for act in acts):
        assert base is not None
        return _by_fold(unit, acts, base, matrices, shape)
    found: list[Rows] = [
        Change([step for act in acts for step in act.steps(index, shape) or ()], shape) for index in range(matrices)
    ]
    found = _recast(unit, found)
    return found if is_said else [_Unpredicted(change) for change in found]


def refuse_other_predictions(unit: Unit, adapters: Sequence[SavedAdapter], found: Sequence[Rows]) -> None:
    """Make what predicts a merge again, as the way back does, and compare.

    Args:
        unit: the unit.
        adapters: those that are merged into it.
        found: their changes, made with the base.

    Raises:
        PluginError: an adapter type does not make the same twice, and its residue could not be decoded.
    """
    ours = [_told(rows) for rows in found]
    if all(change is None for change in ours):
        return
    theirs = [_told(rows) for rows in changes_for(unit, adapters, None)]
    for change, again in zip(ours, theirs, strict=True):
        if change is None or again is None or not change.is_same(again):
            acts = [act for one in adapters for act in one.acts(unit.name, None)]
            what = "an adapter type gives other numbers each time it is asked: build or factors draws, or keeps state"
            where = f"{named(act.link[0] for act in acts if act.link is not None)} on {unit.name}"
            raise PluginError(what, where, "nothing was merged; repair the type, or keep the base: --undo copy")


def _told(rows: Rows) -> Change | None:
    """Return what predicts the merged rows, or None where nothing does."""
    inner = rows.inner if isinstance(rows, Recast) else rows
    return inner if isinstance(inner, Change) else None


def _recast(unit: Unit, found: list[Rows]) -> list[Rows]:
    if not unit.cast:
        return found
    return [Recast(rows, getattr(torch, unit.cast)) for rows in found]


def _by_fold(
    unit: Unit, acts: Sequence[Acts], base: Mapping[str, torch.Tensor], matrices: int, shape: tuple[int, int]
) -> list[Rows]:
    """Fold the parameter as a whole, for adapters that are not said by factors."""
    values = [act.replaces for act in acts if act.replaces is not None]
    if values and len(acts) == 1:
        whole = values[0].reshape(matrices, *shape)
        return _recast(unit, [_Replaced(whole[index]) for index in range(matrices)])
    links = [act.link for act in acts]
    chain = [link for link in links if link is not None]
    if len(chain) < len(links):
        what = "adapters of different formats meet, of which one is not said by factors"
        raise CheckpointError(what, unit.name, "merge them one after the other")
    adapter, site = chain[0]
    if len(chain) == 1 and isinstance(adapter, ReplacementAdapter) and site.slice is None:
        whole = adapter.value.detach().reshape(matrices, *shape)
        return _recast(unit, [_Replaced(whole[index]) for index in range(matrices)])
    pristine = base[unit.name]
    if unit.cast:  # rounded once: as wide as the result, or not at all until then
        into: torch.dtype = getattr(torch, unit.cast)
        pristine = pristine.to(into if holds(into, pristine.dtype) else torch.float64)
    value, _ = merged_tensor(unit.name, site.parameter, pristine, chain)
    whole = value.reshape(matrices, *shape)
    return _recast(unit, [_Replaced(whole[index], is_rounded=True) for index in range(matrices)])


def _parameter_shape(unit: Unit) -> tuple[int, tuple[int, int]]:
    """Return the number of matrices of the parameter, and their shape."""
    first = unit.pieces[0]
    if not first.is_stacked:
        matrices, rows, columns = _as_matrices(first.header.shape)
        return matrices, (rows + sum(piece.header.shape[0] for piece in unit.pieces[1:]), columns)
    own = [piece for piece in unit.pieces if piece.matrix == first.matrix]
    rows = sum(piece.header.shape[0] for piece in own)
    return len(unit.pieces) // len(own), (rows, math.prod(first.header.shape[1:]))


class _Unknown:
    """What is known of a merge without the base, where adapters are not said by factors: nothing."""

    is_sum = False

    def unrounded(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        raise NotImplementedError

    def merge(
        self, weight: torch.Tensor, start: int, correct: bool, out: torch.Tensor, added: torch.Tensor
    ) -> torch.Tensor:
        raise NotImplementedError

    def predict(self, merged: torch.Tensor, start: int) -> torch.Tensor:
        return torch.zeros(merged.shape, dtype=torch.float64)


class _Unpredicted(_Unknown):
    """A change whose adapters cannot be made without the base: it is not there when the base is wanted again."""

    def __init__(self, change: Rows) -> None:
        self._change = change

    def merge(
        self, weight: torch.Tensor, start: int, correct: bool, out: torch.Tensor, added: torch.Tensor
    ) -> torch.Tensor:
        return self._change.merge(weight, start, correct, out, added)


class _Replaced(_Unknown):
    """Rows that are known: those of an adapter that takes the parameter's place, or of a folded parameter."""

    def __init__(self, value: torch.Tensor, *, is_rounded: bool = False) -> None:
        self._value, self._is_rounded = value, is_rounded

    def merge(
        self, weight: torch.Tensor, start: int, correct: bool, out: torch.Tensor, added: torch.Tensor
    ) -> torch.Tensor:
        value = self._value[start : start + weight.shape[0]]
        torch.sub(value.double(), weight.double(), out=added)
        if not self._is_rounded:
            value, is_lost = rounded(weight, weight.double(), value.double())
            if bool(is_lost.any()):
                what = "merging would turn finite weights into NaN or inf"
                raise StateError(what, hint="nothing was merged; use a wider dtype or repair the adapter")
        return out.copy_(value)

    def unrounded(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        return self._value[start : start + weight.shape[0]].double()
