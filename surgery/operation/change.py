"""What adapters do to one stored matrix, said by vectors and low-rank products, and done to any of its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from surgery.adapter.factors import Factors
from surgery.architecture import Site
from surgery.errors import StateError
from surgery.exact import Delta, Passage, Product, format_of, merge_block, passage
from surgery.operation.bits import rounded
from surgery.operation.blame import named
from surgery.operation.fold import Link
from surgery.operation.said import said_factors

__all__ = ["Change", "Step", "steps_of"]


@dataclass(frozen=True)
class Scale:
    """Factors along one axis of a stored matrix.

    Attributes:
        axis: 0 for a factor of each row, 1 for one of each column.
        vector: float64, as long as the axis.
        within: which places of the other axis are scaled, a bool for each; None for all.
    """

    axis: int
    vector: torch.Tensor
    within: torch.Tensor | None = None

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return factors that broadcast over rows start..stop."""
        factors = self.vector[start:stop, None] if self.axis == 0 else self.vector[None]
        if self.within is None:
            return factors
        within = self.within[None] if self.axis == 0 else self.within[start:stop, None]
        return torch.where(within, factors, torch.ones((), dtype=torch.float64))


@dataclass(frozen=True)
class Step:
    """What one adapter does: it scales first and adds then.

    Attributes:
        scales: in the order in which they are applied.
        product: what is added.
    """

    scales: tuple[Scale, ...] = ()
    product: Product | None = None


class Change:
    """The steps of all adapters on one stored matrix, in canonical order.

    A change that only adds is rounded correctly, as `merge_block` does it. Otherwise every step is taken in float64
    elementwise, and the result rounded once. Either is a function of the numbers alone: rows may be asked for in any
    blocking, by several threads.

    Attributes:
        shape: of the whole stored matrix.
        steps: those of all adapters.
        is_sum: whether it only adds.
    """

    def __init__(self, steps: Sequence[Step], shape: tuple[int, int]) -> None:
        self.shape = shape
        self.steps = tuple(steps)
        self.is_sum = not any(step.scales for step in steps)
        self._deltas = [None if step.product is None else Delta([step.product], shape) for step in steps]
        self._delta = Delta([step.product for step in steps if step.product is not None], shape)

    @torch.no_grad()
    def merge(
        self,
        weight: torch.Tensor,
        start: int,
        correct: bool = True,
        out: torch.Tensor | None = None,
        added: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return rows start..start+n of the matrix, given as (n, columns), after all steps; in their dtype.

        Args:
            weight: the rows.
            start: see above.
            correct: see `merge_block`.
            out: where to put them.
            added: float64, contiguous: where to put what is added before rounding; for a sum, what `predict` says.

        Raises:
            StateError: a finite weight would not be finite any more.
        """
        if self.is_sum:
            return merge_block(weight, self._delta, start, correct, out, added)
        wide, value = weight.double(), self.unrounded(weight, start)
        if added is not None:
            torch.sub(value, wide, out=added)
        result, is_lost = rounded(weight, wide, value)
        lost = is_lost.view(-1).nonzero().view(-1)
        if lost.numel():
            name, place = str(format_of(weight.dtype).dtype).removeprefix("torch."), int(lost[0])
            raise StateError(
                f"merging would turn a finite weight into NaN or inf in {name}",
                f"row {place // self.shape[1] + start}, column {place % self.shape[1]}",
                "nothing was merged; use a wider dtype or a smaller scale",
            )
        return result if out is None else out.copy_(result)

    def passed(
        self, weight: torch.Tensor, start: int, *, correct: bool, out: torch.Tensor, with_residue: bool
    ) -> Passage | None:
        """Do what `merge` does, and more, in one pass; None where that is not done. See `surgery.exact.passing`."""
        if not self.is_sum:
            return None
        return passage(weight, self._delta, start, correct=correct, out=out, with_residue=with_residue)

    @torch.no_grad()
    def unrounded(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        """Return what `merge` rounds, as float64; for a sum, after a rounding to float64 of its own."""
        stop, value = start + weight.shape[0], weight.double()
        if self.is_sum:
            return value + self._delta.block(start, stop)
        for step, delta in zip(self.steps, self._deltas, strict=True):
            for scale in step.scales:
                value = value * scale.rows(start, stop)
            if delta is not None:
                value = value + delta.block(start, stop)
        return value

    def exactly(self, weight: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return, for a sum, weight[i] + what is added at (rows[i], columns[i]), as float64 rounded to odd.

        Rounding that once more, to at most 51 bits, is the correct rounding of the exact sum.
        """
        sums, _ = self._delta.approximation.exactly(weight, rows, columns)
        return torch.tensor(sums, dtype=torch.float64)

    def is_same(self, other: Change) -> bool:
        """Whether every number is the same, so that both predict the same."""
        return len(self.steps) == len(other.steps) and all(map(_is_same_step, self.steps, other.steps))

    @torch.no_grad()
    def predict(self, merged: torch.Tensor, start: int) -> torch.Tensor:
        """Return, from merged rows alone, about what was added to them: float64, the same bits everywhere."""
        stop = start + merged.shape[0]
        if self.is_sum:
            # 16 bits are too coarse to notice what the first slice leaves out.
            return self._delta.block(start, stop, correct=merged.element_size() > 2)
        after = merged.double()
        before = after
        for step, delta in zip(reversed(self.steps), reversed(self._deltas), strict=True):
            if delta is not None:
                before = before - delta.block(start, stop)
            for scale in reversed(step.scales):
                before = before / scale.rows(start, stop)
        added = after - before
        return torch.where(torch.isfinite(added), added, torch.zeros_like(added))


def _is_same_step(one: Step, other: Step) -> bool:
    mine, theirs = one.product, other.product
    if (mine is None) != (theirs is None) or len(one.scales) != len(other.scales):
        return False
    if mine is not None and theirs is not None:
        pairs = (mine.up, theirs.up), (mine.down, theirs.down)
        if mine.scale != theirs.scale or not all(torch.equal(a, b) for a, b in pairs):
            return False
    return all(
        scale.axis == again.axis and torch.equal(scale.vector, again.vector)
        for scale, again in zip(one.scales, other.scales, strict=True)
    )


def steps_of(
    parameter: str, chain: Sequence[Link], index: int, shape: tuple[int, int], weights: Sequence[float] = ()
) -> list[Step] | None:
    """Return the steps of `chain` on matrix `index` of a stored parameter; None where factors do not say them.

    Args:
        parameter: the parameter's local name.
        chain: adapters in canonical order.
        index: which matrix of a stack; 0 for a plain one.
        shape: of the stored matrix.
        weights: a factor for each adapter of the chain, for those that only add.

    Raises:
        PluginError: factors that do not fit the matrix.
        StateError: a weight for an adapter that scales, or factors with NaN or inf.
    """
    found = []
    for adapter, site in chain:
        # A companion, such as a bias, has no factors of its own; a type may answer for any name.
        factors = said_factors(parameter, adapter, site) if adapter.site.parameter == parameter else None
        if factors is None:
            return None
        found.append((adapter, site, factors))
    steps = []
    for (adapter, site, factors), weight in zip(found, tuple(weights) or (1.0,) * len(found), strict=True):
        try:
            steps.append(_step(site, factors, index, shape, weight))
        except StateError as error:
            where = f"{named([adapter])} on {site.key}"
            raise StateError(error.what, f"{where}, {error.where}".removesuffix(", "), error.hint) from error
    return steps


def _step(site: Site, factors: Factors, index: int, shape: tuple[int, int], weight: float) -> Step:
    scales = []
    for vector, canonical in ((factors.rows, 0), (factors.columns, 1)):
        if vector is not None:
            axis = 1 - canonical if site.is_transposed else canonical
            own = vector.detach().cpu().double()
            scales.append(_placed(own[index] if own.dim() == 2 else own, site, axis, shape))
    if scales and weight != 1.0:
        raise StateError("only adapters that add can be weighted, and this one scales", hint="leave --weights out")
    if factors.up is None or factors.down is None:
        return Step(tuple(scales))
    return Step(tuple(scales), _product_of(site, replace(factors, scale=factors.scale * weight), index, shape))


def _placed(vector: torch.Tensor, site: Site, axis: int, shape: tuple[int, int]) -> Scale:
    part = site.slice
    if part is None:
        return Scale(axis, vector.clone())
    indices = torch.tensor(part.indices())
    if part.axis - (len(site.shape) - 2) == axis:
        return Scale(axis, torch.ones(shape[axis], dtype=torch.float64).index_copy(0, indices, vector))
    return Scale(axis, vector.clone(), torch.zeros(shape[1 - axis], dtype=torch.bool).index_fill(0, indices, True))


def _product_of(site: Site, factors: Factors, index: int, shape: tuple[int, int]) -> Product:
    """Return what factors add to one stored matrix, copied: adapters may be trained on while they are merged."""
    assert factors.up is not None
    assert factors.down is not None
    up, down = (one[index] if one.dim() == 3 else one for one in (factors.up.detach(), factors.down.detach()))
    left, right = (down.mT, up.mT) if site.is_transposed else (up, down)
    part = site.slice
    axis = None if part is None else part.axis - (len(site.shape) - 2)
    where = torch.tensor(part.indices()) if part is not None else None
    left = _spread(left.cpu(), where, shape[0]) if axis == 0 else left.cpu().clone()
    right = _spread(right.cpu().mT, where, shape[1]).mT if axis == 1 else right.cpu().clone()
    return Product(left, right, factors.scale)


def _spread(rows: torch.Tensor, where: torch.Tensor | None, size: int) -> torch.Tensor:
    assert where is not None
    return rows.new_zeros(size, rows.shape[1]).index_copy(0, where, rows)
