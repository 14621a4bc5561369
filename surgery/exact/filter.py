"""A quick first rounding of W + delta, and where a rigorous bound says that it may be wrong.

This is the usual way to correct rounding (Ziv, ACM TOMS 17, 1991): an approximation with a bound decides nearly all
elements, because both ends of the interval round alike; the rest is computed more precisely.
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from surgery.exact.bounds import Approximation
from surgery.exact.delta import Delta
from surgery.exact.loops import unsigned
from surgery.exact.rounding import Format, format_of, integers
from surgery.exact.scratch import scratch

__all__ = ["round_quickly", "round_with", "rule_for"]

Flags = npt.NDArray[np.bool_]

_COARSE = 2.0**-140
"""Far above a unit of float32 below its normal range, where bfloat16 has numbers, too, and casts go through float32."""

_MANY = 150
"""One undecided element of so many: a product in float64 is cheaper than settling each."""

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


class _Space:
    """Buffers for blocks of one shape: intermediate results stay in the cache, and nothing is allocated."""

    def __init__(self, shape: tuple[int, int], work: torch.dtype, dtype: torch.dtype) -> None:
        self.total, self.wide = (torch.empty(shape, dtype=work) for _ in range(2))
        self.bounds = torch.empty(2, *shape, dtype=work)
        self.lower, self.upper = self.bounds.unbind()
        self.rounded = torch.empty(2, *shape, dtype=dtype)
        patterns = integers(self.rounded).numpy()
        self.patterns = patterns.view(_UNSIGNED[patterns.dtype.itemsize])
        self.differs: Flags = np.empty(shape, np.bool_)


_OWN = threading.local()


def _space(shape: tuple[int, int], work: torch.dtype, dtype: torch.dtype) -> _Space:
    """Return this thread's buffers; those of another shape are given up."""
    spaces: dict[Any, tuple[tuple[int, int], _Space]] = _OWN.__dict__.setdefault("spaces", {})
    found = spaces.get((work, dtype))
    if found is None or found[0] != shape:
        found = spaces[work, dtype] = (shape, _Space(shape, work, dtype))
    return found[1]


def round_quickly(
    weight: torch.Tensor, sums: Approximation, start: int, form: Format, out: torch.Tensor
) -> npt.NDArray[np.intp]:
    """Round W + an approximate delta into `out`, and return flat indices of elements for which that is not certain.

    Args:
        weight: (n, in), contiguous: float32, bfloat16, float16 or float8.
        sums: what is added to the whole weight.
        start: the first row of the block.
        form: of `weight` and `out`.
        out: (n, in).
    """
    rows = slice(start, start + weight.shape[0])
    if form.dtype == torch.float32 and sums.is_exact(rows):
        differs = _by_sums(weight, sums, rows, out)
    elif form.dtype == torch.float32 or sums.prefers_wide or not _is_single_single():
        # In 16 bits float64 is cast by way of float32, whose rounding must be covered, too.
        slack = 2.0**-51 if form.dtype == torch.float32 else 2.0**-22
        error = sums.wide[rows]
        if form.dtype == torch.bfloat16:
            error = error + error.sign() * _COARSE
        differs = _by_bounds(weight, (sums.up[rows], sums.down, error), slack, form, out)
    else:
        up, down, error = sums.single
        differs = _by_bounds(weight, (up[rows], down, error[rows]), 2.0**-22, form, out)
    unchanged = sums.zero_rows[rows]
    if unchanged.any():
        integers(out)[unchanged] = integers(weight)[unchanged]
        differs[unchanged] = False
    found = np.flatnonzero(differs)
    if found.size > differs.size // _MANY:
        sums.prefers_wide = True
    return found


def round_with(
    loops: ModuleType,
    weight: torch.Tensor,
    delta: Delta,
    added: torch.Tensor,
    start: int,
    out: torch.Tensor,
) -> npt.NDArray[np.intp]:
    """Do as `round_quickly` does, in one compiled pass, from a product that is there.

    Args:
        loops: `surgery.exact.compiled`.
        weight: (n, in), contiguous: float32 or bfloat16.
        delta: what is added to the whole weight.
        added: (n, in), float64: `delta.block` of these rows, with all slices for float32.
        start: the first row of the block.
        out: (n, in).
    """
    rows = slice(start, start + weight.shape[0])
    where = scratch("where", (weight.numel(),), torch.int64).numpy()
    error, *rule = rule_for(delta, rows, weight.dtype)
    count = loops.decide(unsigned(weight), added.numpy(), error[rows], *rule, unsigned(out), where)
    return where[:count].copy()


def rule_for(delta: Delta, rows: slice, dtype: torch.dtype) -> tuple[npt.NDArray[Any], float, bool, int]:
    """Return by what `decide` rounds sums in these rows: error (of all rows), slack, is_exact, edge."""
    is_wide = dtype == torch.float32
    error = delta.error(correct=is_wide)
    is_exact = is_wide and delta.approximation.is_exact(rows)
    slack = 2.0**-51 if is_wide else 2.0**-22
    return error if is_wide else error + np.sign(error) * _COARSE, slack, is_exact, format_of(dtype).edge


def _is_single_single() -> bool:
    """Whether torch multiplies float32 in float32: programs may allow it less."""
    return torch.get_float32_matmul_precision() == "highest"


def _by_bounds(
    weight: torch.Tensor,
    factors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    slack: float,
    form: Format,
    out: torch.Tensor,
) -> Flags:
    """Round W + up @ down, and return where W + up @ down ± error may round otherwise.

    `slack` is at least four times the unit roundoff of the arithmetic: one for the sum, two for each of its bounds.
    """
    up, down, error = factors
    own = _space((weight.shape[0], weight.shape[1]), up.dtype, form.dtype)
    torch.mm(up, down, out=own.total)
    own.total.add_(own.wide.copy_(weight))
    out.copy_(own.total)
    # The magnitude is between size * (1 - slack) - error and size * (1 + slack) + error, and rounding is monotone.
    size = torch.abs(own.total, out=own.wide)
    torch.add(-error, size, alpha=1.0 - slack, out=own.lower)
    torch.add(error, size, alpha=1.0 + slack, out=own.upper)
    own.rounded.copy_(own.bounds)
    lower, upper = own.patterns
    np.not_equal(lower, upper, out=own.differs)
    if upper.max() >= form.edge:
        own.differs |= upper >= form.edge
    return own.differs


def _by_sums(weight: torch.Tensor, sums: Approximation, rows: slice, out: torch.Tensor) -> Flags:
    """Round float32 W + up @ down, whose product is exact, and return where the sum is not exact, or a zero."""
    own = _space((weight.shape[0], weight.shape[1]), torch.float64, torch.float32)
    added, back = own.bounds.unbind()
    torch.mm(sums.up[rows], sums.down, out=added)
    torch.add(own.wide.copy_(weight), added, out=own.total)
    out.copy_(own.total)
    # The larger number taken from the sum leaves the smaller one, if and only if nothing was rounded (Fast2Sum).
    np.not_equal(torch.sub(own.total, own.wide, out=back).numpy(), added.numpy(), out=own.differs)
    own.differs |= np.not_equal(torch.sub(own.total, added, out=back).numpy(), own.wide.numpy())
    own.differs |= np.equal(own.total.numpy(), 0.0)
    if not float(torch.abs(own.total, out=back).amax()) < 2.0**127:
        own.differs |= ~(back < 2.0**127).numpy()
    return own.differs
