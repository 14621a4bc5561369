"""Rounding single elements correctly, where a fast product with a bound could not tell."""

from __future__ import annotations

from typing import NoReturn

import torch

from surgery.errors import StateError
from surgery.exact.bounds import Approximation
from surgery.exact.rounding import Format, integers, round_once, to_odd

__all__ = ["refuse", "settle"]

_AT_ONCE = 16384


def settle(
    weight: torch.Tensor, sums: Approximation, start: int, form: Format, out: torch.Tensor, indices: torch.Tensor
) -> None:
    """Write rn(W + delta) into the elements `indices` of `out`.

    Args:
        weight: (n, in), contiguous.
        sums: what is added to the whole weight.
        start: the first row of `weight`.
        form: of `weight` and `out`.
        out: (n, in), contiguous.
        indices: (m), int64, into the flat block.

    Raises:
        StateError: a finite weight would not be finite any more.
    """
    width = weight.shape[1]
    own_bits, out_bits = integers(weight).view(-1), integers(out).view(-1)
    for chosen in torch.split(indices, _AT_ONCE):
        rows, columns = chosen // width + start, chosen % width
        own = own_bits[chosen]
        base = own.view(form.dtype).double()
        number, stays = _by_product(base, sums, rows, columns, form)
        undecided = (number.isnan() & ~stays).nonzero().view(-1)
        if undecided.numel():
            exact, same = sums.exactly(
                base[undecided], rows[undecided], columns[undecided], odd=form.dtype != torch.float64
            )
            number[undecided] = torch.tensor(exact, dtype=torch.float64)
            stays[undecided] = torch.tensor(same)
        lost = (form.overflows(number) & ~stays).nonzero().view(-1)
        if lost.numel():
            refuse(int(chosen[lost[0]]), start, width, form)
        out_bits[chosen] = torch.where(stays, own, integers(round_once(number, form.dtype)))


def _by_product(
    base: torch.Tensor, sums: Approximation, rows: torch.Tensor, columns: torch.Tensor, form: Format
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return numbers that round as the sums do, NaN where that is not known, and where W stays as it is."""
    value, error = sums.at(rows, columns)
    total = base + value
    stays = ~torch.isfinite(base) | (sums.row_norm[rows] == 0) | (sums.column_norm[columns] == 0)
    # Knuth's TwoSum: base + value is total + rest, exactly.
    part = total - base
    rest = (base - (total - part)) + (value - part)
    is_exact = error == 0
    exact = total if form.dtype == torch.float64 else to_odd(total, rest)
    radius = total.abs() * 2.0**-51 + error
    low, high = total - radius, total + radius
    certain = integers(round_once(low, form.dtype)) == integers(round_once(high, form.dtype))
    certain &= ~form.overflows(low) & ~form.overflows(high)
    if form.dtype == torch.float64:
        certain = torch.zeros_like(certain)
    number = torch.where(is_exact, exact, torch.where(certain, total, float("nan")))
    return number, stays | (is_exact & (value == 0))


def refuse(index: int, start: int, width: int, form: Format) -> NoReturn:
    """Raise StateError: element `index` of a flat block that begins at row `start` would overflow."""
    raise StateError(
        f"merging would turn a finite weight into NaN or inf in {str(form.dtype).removeprefix('torch.')}",
        f"row {index // width + start}, column {index % width}",
        "nothing was merged; use a wider dtype or a smaller scale",
    )
