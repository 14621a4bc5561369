"""Merging a block of rows: W + what adapters add, rounded correctly into W's dtype."""

from __future__ import annotations

import numpy as np
import torch

from surgery.errors import StateError
from surgery.exact.bounds import Approximation
from surgery.exact.delta import Delta
from surgery.exact.rounding import Format, format_of, integers, round_once
from surgery.exact.scratch import scratch

__all__ = ["merge_block"]

_AT_ONCE = 16384
"""Elements of one step where elements are looked at one by one."""


@torch.no_grad()
def merge_block(
    weight: torch.Tensor, delta: Delta, start: int, correct: bool = True, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return rows start..start+n of W + delta, rounded into W's dtype.

    With `correct`, every element is the exact sum, rounded to nearest even once: a function of the numbers alone. A
    fast product with a bound decides nearly all of them; those that could round either way are summed exactly.
    Without, it is float64 W + `delta.block(..., correct=False)` in two roundings: as reproducible, and seldom (in 16
    bits about 1 of 100,000) the other neighbour.

    Elements to which exactly zero is added keep their bits, and so do NaN and infinities of W.

    Args:
        weight: (n, in): float32, bfloat16, float16, float8 (e4m3fn, e5m2), or float64, contiguous on the CPU.
        delta: what is added to the whole weight.
        start: the first row of the block.
        correct: see above.
        out: where to put it, of the shape and dtype of `weight`; may be `weight` itself.

    Raises:
        StateError: a finite weight would not be finite any more (row and column are named), or an unknown dtype.
    """
    form = format_of(weight.dtype)
    out = torch.empty_like(weight) if out is None else out
    if not weight.numel():
        return out
    if correct:
        _correctly(weight, delta.approximation, start, form, out)
    else:
        _quickly(weight, delta, start, form, out)
    return out


def _quickly(weight: torch.Tensor, delta: Delta, start: int, form: Format, out: torch.Tensor) -> None:
    shape = (weight.shape[0], weight.shape[1])
    added = delta.block(start, start + shape[0], correct=False, out=scratch("delta", shape, torch.float64))
    total = scratch("wide", shape, torch.float64).copy_(weight)
    keeps = _zeros(weight, total, added)
    total.add_(added)
    lost = None
    if not float(total.sum().abs()) < float("inf") or not _is_inside(total, form):
        is_finite = torch.isfinite(weight.to(torch.float32) if weight.element_size() == 1 else weight)
        lost = (form.overflows(total) & is_finite).view(-1).nonzero().view(-1)
        if lost.numel():
            _refuse(int(lost[0]), start, shape[1], form)
        keeps = (keeps if keeps is not None else torch.zeros_like(is_finite)) | ~is_finite
    kept = weight[keeps] if keeps is not None else None
    out.copy_(total if form.dtype in (torch.float32, torch.float64) else total.to(torch.float32))
    if keeps is not None and kept is not None:
        integers(out)[keeps] = integers(kept)


def _zeros(weight: torch.Tensor, wide: torch.Tensor, added: torch.Tensor) -> torch.Tensor | None:
    """Return where a zero of W stays as it is, or None where no weight is -0."""
    negative = -(1 << (8 * weight.element_size() - 1))
    lowest = integers(weight)
    if lowest.dtype == torch.uint8:
        has = bool((lowest == 128).any())
    else:
        has = int(lowest.amin()) == negative
    return ((wide == 0) & (added == 0)) if has else None


def _is_inside(total: torch.Tensor, form: Format) -> bool:
    low, high = torch.aminmax(total)
    return max(-float(low), float(high)) < form.ends


def _correctly(weight: torch.Tensor, sums: Approximation, start: int, form: Format, out: torch.Tensor) -> None:
    shape = (weight.shape[0], weight.shape[1])
    base = weight.clone() if out.data_ptr() == weight.data_ptr() else weight
    if form.dtype == torch.float64:
        chosen = torch.arange(weight.numel())
    else:
        is_wide = form.dtype == torch.float32 or torch.get_float32_matmul_precision() != "highest"
        chosen = _decide(base, sums, start, form, out, torch.float64 if is_wide else torch.float32)
    for indices in chosen.split(_AT_ONCE):
        _settle(base.view(-1), sums, start, shape[1], form, out.view(-1), indices)


def _decide(
    weight: torch.Tensor, sums: Approximation, start: int, form: Format, out: torch.Tensor, work: torch.dtype
) -> torch.Tensor:
    """Round W + an approximate delta into `out`, and return flat indices of elements for which that is not certain."""
    shape = (weight.shape[0], weight.shape[1])
    stop = start + shape[0]
    total, low, wide = (scratch(name, shape, work) for name in ("total", "low", "w"))
    if work == torch.float64:
        up, down, error = sums.up, sums.down, sums.wide
        # In 16 bits float64 is cast by way of float32, whose rounding must be covered, too.
        slack = 2.0**-51 if form.dtype == torch.float32 else 2.0**-21
    else:
        up, down, error = sums.single
        slack = 2.0**-21
    error = error[start:stop]
    torch.mm(up[start:stop], down, out=total)
    total.add_(wide.copy_(weight))
    out.copy_(total)
    size = torch.abs(total, out=wide)
    peak = float(size.amax())
    # The true magnitude is between size * (1 - slack) - error and size * (1 + slack) + error; rounding is monotone.
    torch.add(-error, size, alpha=1.0 - slack, out=low)
    lower = scratch("lower", shape, form.dtype).copy_(low)
    torch.add(error, size, alpha=1.0 + slack, out=low)
    upper = scratch("upper", shape, form.dtype).copy_(low)
    differs = np.not_equal(integers(lower).numpy(), integers(upper).numpy())
    if not peak * (1.0 + 2.0**-20) + float(error.amax()) < form.ends * (1.0 - 2.0**-20):
        differs |= (~(low < form.ends * (1.0 - 2.0**-20))).numpy()
    unchanged = (error == 0).view(-1)
    if bool(unchanged.any()):
        integers(out)[unchanged] = integers(weight)[unchanged]
        differs[unchanged.numpy()] = False
    return torch.from_numpy(np.flatnonzero(differs))


def _settle(
    weight: torch.Tensor,
    sums: Approximation,
    start: int,
    width: int,
    form: Format,
    out: torch.Tensor,
    indices: torch.Tensor,
) -> None:
    """Round the elements `indices` of flat `weight` correctly into flat `out`."""
    rows, columns = indices // width + start, indices % width
    own = weight.view(_bits(weight))[indices]
    base = own.view(weight.dtype).double()
    value, error = sums.at(rows, columns)
    total = base + value
    radius = total.abs() * 2.0**-51 + error
    low, high = total - radius, total + radius
    found = round_once(high, form.dtype)
    stays = (error == 0) | ~torch.isfinite(base)
    certain = integers(round_once(low, form.dtype)) == integers(found)
    certain &= ~form.overflows(low) & ~form.overflows(high)
    if form.dtype == torch.float64:
        certain &= False
    open_ = (~certain & ~stays).nonzero().view(-1)
    result = integers(found).clone()
    if open_.numel():
        odd, same = sums.exactly(base[open_], rows[open_], columns[open_], odd=form.dtype != torch.float64)
        exact = torch.tensor(odd, dtype=torch.float64)
        lost = form.overflows(exact).nonzero().view(-1)
        if lost.numel():
            _refuse(int(indices[open_[lost[0]]]), start, width, form)
        result[open_] = integers(round_once(exact, form.dtype))
        stays[open_] = torch.tensor(same)
    out.view(_bits(out))[indices] = torch.where(stays, own, result)


def _bits(tensor: torch.Tensor) -> torch.dtype:
    return integers(tensor[:0]).dtype


def _refuse(index: int, start: int, width: int, form: Format) -> None:
    raise StateError(
        f"merging would turn a finite weight into NaN or inf in {str(form.dtype).removeprefix('torch.')}",
        f"row {index // width + start}, column {index % width}",
        "nothing was merged; use a wider dtype or a smaller scale",
    )
