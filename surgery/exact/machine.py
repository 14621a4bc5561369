"""Whether this machine, in its present mode, computes as IEEE 754 says; and whether a product is right."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from surgery.errors import StateError

__all__ = ["check_machine", "check_product"]

Ints = npt.NDArray[np.int64]


def check_machine() -> None:
    """Raise StateError unless float64 and casts behave as exactness needs it; some hundred microseconds.

    Found are flush-to-zero modes, casts that do not round ties to even, and products of float64 that are not (as of
    devices or modes that emulate it with less).
    """
    for what, is_right in (
        ("subnormal numbers are flushed to zero", _keeps_subnormals()),
        ("casts do not round ties to even", _rounds_ties()),
        ("float64 sums are rounded otherwise", _adds_in_float64()),
        ("float64 products are not computed in float64", _multiplies_in_float64()),
    ):
        if not is_right:
            raise StateError(
                f"this machine cannot merge exactly: {what}",
                hint="torch.set_flush_denormal(False), and no emulated float64; nothing was merged",
            )


def _keeps_subnormals() -> bool:
    double = torch.tensor([2.0**-1070] * 16, dtype=torch.float64)
    single = torch.tensor([2.0**-120] * 16, dtype=torch.float32)
    narrowed = torch.tensor([2.0**-140] * 16, dtype=torch.float64).to(torch.float32)
    half = torch.tensor([2.0**-130] * 16, dtype=torch.float32).to(torch.bfloat16)
    return all(
        bool((value != 0).all())
        for value in (double * 0.25, single * 2.0**-20, narrowed, half, narrowed.double(), half.float())
    )


def _rounds_ties() -> bool:
    one = torch.tensor([1.0] * 16, dtype=torch.float64)
    checks = []
    for dtype, unit in ((torch.float32, 2.0**-23), (torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)):
        for count, expected in ((0.5, 0.0), (1.5, 2.0), (0.75, 1.0), (-0.25, -0.0)):
            wide = one + count * unit
            got = (wide if dtype == torch.float32 else wide.to(torch.float32)).to(dtype).double()
            checks.append(bool((got == 1.0 + expected * unit).all()))
    return all(checks)


def _adds_in_float64() -> bool:
    one = torch.tensor([1.0] * 16, dtype=torch.float64)
    tiny = torch.tensor([2.0**-53] * 16, dtype=torch.float64)
    # Extended precision would keep the small number; less would lose the second one.
    return bool(((one + tiny) - one == 0).all()) and bool(((one + 2 * tiny) - one == 2 * tiny).all())


def _multiplies_in_float64() -> bool:
    size, rank = 24, 19
    steps = torch.arange(size * rank, dtype=torch.int64)
    up = ((steps * 2654435761) % 16_777_213 - 8_388_606).view(size, rank)
    down = ((steps * 40503 + 12345) % 16_777_199 - 8_388_599).view(rank, size)
    expected = (up.unsqueeze(2) * down.unsqueeze(0)).sum(1)
    got = up.double() @ down.double()
    return bool((got == expected.double()).all()) and int(expected.abs().amax()) > 2**46


def check_product(up: torch.Tensor, down: torch.Tensor, product: torch.Tensor, generator: torch.Generator) -> None:
    """Raise StateError unless `product` is up @ down exactly, without the library that multiplied them.

    Freivalds' check in integers modulo 2**64: both sides are applied to two random vectors. A product that is off by an
    odd number of 2**t units passes with a probability of 2**(2*t - 128); t is at most 54.

    Source: Freivalds, Probabilistic machines can use less running time, IFIP 1977.

    Args:
        up: (out, r), float64, and `down`, (r, in): a group of slices, or other factors whose product is exact.
        product: (out, in), float64.
        generator: draws the vectors.
    """
    rows, columns = _lowest(up, 1), _lowest(down, 0)
    units = torch.ldexp(torch.ldexp(product, -rows), -columns)
    # What is off the grid is wrong, and no integer: it must not be cut to one.
    is_whole = (units == units.round()) & (units.abs() < 2.0**62) & ((units == 0) == (product == 0))
    is_right = bool(is_whole.all())
    for _ in range(2 if is_right else 0):
        vector = torch.randint(-(2**63), 2**63 - 1, (down.shape[1],), generator=generator).numpy()
        inner = _apply(torch.ldexp(down, -columns), vector)
        is_right &= np.array_equal(_apply(units, vector), _apply(torch.ldexp(up, -rows), inner))
    if not is_right:
        raise StateError(
            "a product of float64 is not what its factors make",
            hint="nothing was merged; torch on this machine does not multiply exactly",
        )


def _lowest(factor: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the exponent of a unit of which all entries of a row (axis 1) or column (axis 0) are multiples."""
    mantissa, exponent = torch.frexp(factor)
    digits = (mantissa * 2.0**53).to(torch.int64)
    own = torch.frexp((digits & -digits).to(torch.float64)).exponent + exponent - 54
    lowest = torch.where(factor == 0, 1 << 20, own).amin(axis, keepdim=True)
    return torch.where(lowest == 1 << 20, 0, lowest)


def _apply(whole: torch.Tensor, vector: Ints) -> Ints:
    """Return a matrix of integers, as float64, times a vector, modulo 2**64: numpy's integers wrap around."""
    product: Ints = (whole.to(torch.int64).numpy() * vector).sum(1)
    return product
