"""Merging a block of rows: W + what adapters add, rounded correctly into W's dtype."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch

from surgery.exact.delta import Delta
from surgery.exact.filter import round_quickly, round_with
from surgery.exact.loops import compiled_for
from surgery.exact.rounding import Format, format_of, integers
from surgery.exact.scratch import scratch
from surgery.exact.settle import refuse, settle

__all__ = ["merge_block"]

_IN_CACHE = 1 << 17
"""Elements whose intermediate results stay in a core's own cache."""


@torch.no_grad()
def merge_block(
    weight: torch.Tensor,
    delta: Delta,
    start: int,
    correct: bool = True,
    out: torch.Tensor | None = None,
    added: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return rows start..start+n of W + delta, rounded into W's dtype.

    With `correct`, every element is the exact sum, rounded to nearest even once: a function of the numbers alone. A
    fast product with a bound decides nearly all of them; those that could round either way are summed exactly.
    Without, W + `delta.block(..., correct=False)` is computed in float32 (for float32 in float64) and rounded: as
    reproducible, and seldom (in 16 bits about 1 of 10,000 to 100,000; in float32 a few of 100) the other neighbour.

    Elements to which exactly zero is added keep their bits, and so do NaN and infinities of W. A call costs some
    hundred microseconds of its own: a million elements at once are better than a hundred thousand.

    Args:
        weight: (n, in): float32, bfloat16, float16, float8 (e4m3fn, e5m2), or float64, on the CPU.
        delta: what is added to the whole weight.
        start: the first row of the block.
        correct: see above.
        out: where to put it, contiguous, of the shape and dtype of `weight`; may be `weight` itself.
        added: (n, in), float64, contiguous: where to put `delta.block(start, start + n, correct=...)`, with all slices
            for weights of more than 16 bits. That is what residues are made with, and where it is wanted anyway,
            merging is a step on the way.

    Raises:
        StateError: a finite weight would not be finite any more (row and column are named; `out` holds anything then),
            or an unknown dtype.
    """
    form = format_of(weight.dtype)
    weight = weight.detach().contiguous()
    if out is None:
        out = torch.empty_like(weight)
    elif correct and out.data_ptr() == weight.data_ptr():
        weight = weight.clone()
    if not weight.numel():
        return out
    rows, columns = weight.shape
    step = max(1, _IN_CACHE // columns)
    # All slices cost more than a product of float64: for float32 they must be wanted.
    loops = compiled_for(weight) if correct and (added is not None or weight.element_size() == 2) else None
    undecided = []
    for first in range(0, rows, step):
        part, result = weight[first : first + step], out[first : first + step]
        into = None if added is None else added[first : first + step]
        if correct:
            undecided.append(_round(loops, part, delta, start + first, result, into) + first * columns)
        else:
            _by_one_slice(part, delta, start + first, form, result)
            if into is not None:
                _added(part, delta, start + first, into)
    if undecided:
        settle(weight, delta.approximation, start, form, out, torch.from_numpy(np.concatenate(undecided)))
    return out


def _round(
    loops: ModuleType | None,
    weight: torch.Tensor,
    delta: Delta,
    start: int,
    out: torch.Tensor,
    added: torch.Tensor | None,
) -> npt.NDArray[np.intp]:
    """Round some rows, and return flat indices of elements for which that is not certain."""
    form = format_of(weight.dtype)
    if loops is not None and added is None:
        added = scratch("delta", (weight.shape[0], weight.shape[1]), torch.float64)
    if added is not None:
        _added(weight, delta, start, added)
    if form.dtype == torch.float64:
        return np.arange(weight.numel())
    if loops is not None and added is not None:
        return round_with(loops, weight, delta, added, start, out)
    return round_quickly(weight, delta.approximation, start, form, out)


def _added(weight: torch.Tensor, delta: Delta, start: int, out: torch.Tensor) -> None:
    delta.block(start, start + weight.shape[0], correct=weight.element_size() > 2, out=out)


def _by_one_slice(weight: torch.Tensor, delta: Delta, start: int, form: Format, out: torch.Tensor) -> None:
    shape = (weight.shape[0], weight.shape[1])
    # Single IEEE operations and casts, said one by one so that every version of torch does them so.
    added = delta.block(start, start + shape[0], correct=False, out=scratch("delta", shape, torch.float64))
    work = torch.float64 if form.dtype in {torch.float32, torch.float64} else torch.float32
    if work == torch.float32:
        added = scratch("single", shape, work).copy_(added)
    total = scratch("sum", shape, work).copy_(weight)
    keeps = (total == 0) & (added == 0) if _has_negative_zero(weight) else None
    total.add_(added)
    own = integers(weight).clone() if out.data_ptr() == weight.data_ptr() else integers(weight)
    out.copy_(total)
    if _reaches_edge(out, form):
        is_finite = torch.isfinite(own.view(form.dtype).to(work))
        lost = (form.overflows(total) & is_finite).view(-1).nonzero().view(-1)
        if lost.numel():
            refuse(int(lost[0]), start, shape[1], form)
        keeps = ~is_finite if keeps is None else keeps | ~is_finite
    if keeps is not None:
        integers(out)[keeps] = own[keeps]


def _reaches_edge(values: torch.Tensor, form: Format) -> bool:
    bits = integers(values).numpy()
    magnitudes = scratch("magnitudes", tuple(values.shape), integers(values).dtype).numpy()
    np.bitwise_and(bits, bits.dtype.type(form.magnitude), out=magnitudes)
    return bool(magnitudes.max() >= form.edge)


def _has_negative_zero(weight: torch.Tensor) -> bool:
    bits = integers(weight)
    if bits.dtype == torch.uint8:
        return bool((bits == 128).any())
    return int(bits.amin()) == torch.iinfo(bits.dtype).min
