"""Merged rows in another dtype than the base's, rounded once; and the base's rows told from them."""

from __future__ import annotations

from typing import Protocol

import torch

from surgery.errors import StateError
from surgery.exact import round_once
from surgery.operation.change import Change

__all__ = ["Recast", "as_wide", "guessed", "holds"]

_HELD = {
    torch.float32: frozenset({torch.float16, torch.bfloat16, torch.float32}),
    torch.float64: frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64}),
}


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every number of `narrow` is one of `wide`."""
    return narrow == wide or narrow in _HELD.get(wide, ())


def as_wide(rows: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Return `rows` in the dtype of `result`, if that has more bits: a report counts in the wider of the two."""
    return rows.to(result.dtype) if result.element_size() > rows.element_size() else rows


def guessed(merged: torch.Tensor, added: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what `merged` rows most likely were, in `dtype`: W' - dW, rounded once. The same bits everywhere.

    Where W' is wider than W, this is W but for elements that a far larger dW has covered: |W' - (W + dW)| is at most
    half a unit of W', and that is less than half a unit of W unless |dW| is many times |W|. The residue holds the rest.
    """
    value = merged.double() - added
    # The bits of a NaN depend on the machine's way to cast it; those of the base are in the residue.
    return round_once(torch.where(value.isnan(), 0.0, value), dtype)


class _Inner(Protocol):
    is_sum: bool

    def merge(
        self, weight: torch.Tensor, start: int, correct: bool, out: torch.Tensor, added: torch.Tensor
    ) -> torch.Tensor: ...

    def predict(self, merged: torch.Tensor, start: int) -> torch.Tensor: ...

    def unrounded(self, weight: torch.Tensor, start: int) -> torch.Tensor: ...


class Recast:
    """A change whose result has the dtype `into`; else as `surgery.checkpoint.units.Rows`.

    A sum is the exact W + sum of s * BA, rounded to nearest even once. In a dtype that holds all numbers of W's that is
    what merging W itself, cast, gives. Otherwise the sum is first rounded in W's own dtype, or float32: between two
    neighbours of the result that decides, unless it stands on the very middle; those are summed exactly.
    """

    def __init__(self, inner: _Inner, into: torch.dtype) -> None:
        self.inner, self._into = inner, into
        self.is_sum = inner.is_sum

    @torch.no_grad()
    def merge(
        self, weight: torch.Tensor, start: int, correct: bool, out: torch.Tensor, added: torch.Tensor
    ) -> torch.Tensor:
        """Return rows start..start+n after the change, in the new dtype.

        Raises:
            StateError: a finite weight would not be finite any more.
        """
        result = self._merged(weight, start, correct)
        lost = (torch.isfinite(weight) & ~torch.isfinite(result)).view(-1).nonzero().view(-1)
        if lost.numel():
            name, place = str(self._into).removeprefix("torch."), int(lost[0])
            raise StateError(
                f"merging would turn a finite weight into NaN or inf in {name}",
                f"row {place // weight.shape[1] + start}, column {place % weight.shape[1]}",
                "nothing was merged; use a wider dtype or a smaller scale",
            )
        if self.is_sum:
            added.copy_(self.predict(result, start))
        else:
            torch.sub(self.unrounded(weight, start), weight.double(), out=added)
        return out.copy_(result)

    def _merged(self, weight: torch.Tensor, start: int, correct: bool) -> torch.Tensor:
        change = self.inner
        if not (isinstance(change, Change) and change.is_sum):
            return round_once(change.unrounded(weight, start), self._into)
        if not change.steps:
            return round_once(weight.double(), self._into)
        if holds(self._into, weight.dtype):
            return change.merge(weight.to(self._into), start, correct)
        if not correct:
            return round_once(change.unrounded(weight, start), self._into)
        wide = weight if weight.dtype == torch.float64 else weight.float()
        first = change.merge(wide, start)
        result = round_once(first.double(), self._into)
        ends = (torch.nextafter(first, torch.full_like(first, end)) for end in (-torch.inf, torch.inf))
        low, high = (round_once(end.double(), self._into) for end in ends)
        places = ((low != high) & torch.isfinite(first)).nonzero()
        if len(places):
            rows, columns = places.unbind(1)
            exact = change.exactly(wide[rows, columns].double(), rows + start, columns)
            result[rows, columns] = round_once(exact, self._into)
        return result

    def predict(self, merged: torch.Tensor, start: int) -> torch.Tensor:
        return self.inner.predict(merged, start)

    def unrounded(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        return self.inner.unrounded(weight, start)
