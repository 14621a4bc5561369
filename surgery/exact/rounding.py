"""Correct rounding: one rounding to nearest even from float64, and where a format ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from surgery.errors import StateError

__all__ = ["Format", "format_of", "integers", "round_once", "same_bits", "to_odd"]

_INTEGER_VIEW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Format:
    """A floating-point format.

    Attributes:
        dtype: as torch names it.
        code: its number in files.
        ends: the magnitude at which rounding leaves the finite numbers: half a unit past the largest one.
        ends_at: whether that magnitude itself does (a tie goes to even: the largest number, or what lies beyond).
        edge: the pattern of the first magnitude that is not finite; where there is no infinity, of the last that is.
    """

    dtype: torch.dtype
    code: int
    ends: float
    edge: int
    ends_at: bool = True

    @property
    def magnitude(self) -> int:
        """Every bit of a pattern apart from the sign."""
        return (1 << (8 * self.dtype.itemsize - 1)) - 1

    def overflows(self, value: torch.Tensor) -> torch.Tensor:
        """Return where float64 `value` rounds to something that is not finite."""
        size = value.abs()
        return ~((size < self.ends) if self.ends_at else (size <= self.ends))


_FORMATS = {
    one.dtype: one
    for one in (
        Format(torch.float32, 1, 2.0**128 - 2.0**103, 0x7F800000),
        Format(torch.bfloat16, 2, 2.0**128 - 2.0**119, 0x7F80),
        Format(torch.float16, 3, 65520.0, 0x7C00),
        Format(torch.float8_e4m3fn, 4, 464.0, 0x7E, ends_at=False),
        Format(torch.float8_e5m2, 5, 61440.0, 0x7C),
        Format(torch.float64, 6, float("inf"), 0x7FF0000000000000),
    )
}


def format_of(dtype: torch.dtype) -> Format:
    """Return the format of a floating dtype.

    Raises:
        StateError: exact merging does not know this dtype.
    """
    if dtype not in _FORMATS:
        known = ", ".join(str(one).removeprefix("torch.") for one in _FORMATS)
        raise StateError(f"{dtype} cannot be merged into", hint=f"known: {known}")
    return _FORMATS[dtype]


def integers(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor's bits as integers of the same size: a view where the tensor is contiguous."""
    return tensor.detach().contiguous().view(_INTEGER_VIEW[tensor.element_size()])


def same_bits(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return elementwise equality of bits (NaN equals itself, -0 differs from +0), a bool tensor."""
    return integers(left) == integers(right)


def round_once(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round float64 to `dtype`, to nearest even, once.

    torch casts float64 to 16 bits through float32 and so rounds twice. Rounding to odd in between makes the second
    rounding right: float32 keeps more than the two extra bits that this needs (Boldo and Melquiond 2008).
    """
    if value.dtype != torch.float64 or dtype in (torch.float64, torch.float32):
        return value.to(dtype)
    single = value.to(torch.float32)
    error = value - single.to(torch.float64)
    bits = single.view(torch.int32)
    is_wrong = (error != 0) & ((bits & 1) == 0) & torch.isfinite(single)
    # Away from zero the next float has the next higher bit pattern; towards zero the next lower one. A rounded value
    # of exactly zero has the error's sign and a pattern of its own.
    outwards = (error > 0) == (value > 0)
    odd = torch.where(outwards, bits + 1, bits - 1)
    tiny = torch.where(value < 0, torch.full_like(bits, -(2**31) + 1), torch.ones_like(bits))
    odd = torch.where(single == 0, tiny, odd)
    return torch.where(is_wrong, odd, bits).view(torch.float32).to(dtype)


def to_odd(total: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Return total + rest, |rest| being at most half a unit of `total`, rounded to odd; float64, normal numbers.

    What is not a float64 becomes the neighbour with an odd last bit: rounding that to a shorter format is the correct
    rounding of the unrounded sum.
    """
    bits = total.view(torch.int64)
    is_wrong = (rest != 0) & ((bits & 1) == 0)
    outwards = (rest > 0) == (total > 0)
    return torch.where(is_wrong, torch.where(outwards, bits + 1, bits - 1), bits).view(torch.float64)
