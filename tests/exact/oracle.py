"""The correct rounding of W + sum of s*B*A in rational arithmetic, one element at a time, sharing no code with surgery."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

# significand bits (the hidden one included), least exponent of a unit, largest finite number
FORMATS = {
    torch.float64: (53, -1074, Fraction(2) ** 1024 - Fraction(2) ** 971),
    torch.float32: (24, -149, Fraction(2) ** 128 - Fraction(2) ** 104),
    torch.bfloat16: (8, -133, Fraction(2) ** 128 - Fraction(2) ** 120),
    torch.float16: (11, -24, Fraction(65504)),
    torch.float8_e4m3fn: (4, -9, Fraction(448)),
    torch.float8_e5m2: (3, -16, Fraction(57344)),
}
VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class OverflowingError(Exception):
    """A finite weight has no finite result."""


def rounded(value: Fraction, dtype: torch.dtype) -> Fraction:
    """Return the number of the format nearest to `value`, the even one of two."""
    bits, least, largest = FORMATS[dtype]
    size = abs(value)
    exponent = least
    while size >= Fraction(2) ** (exponent + bits):
        exponent += 1
    unit = Fraction(2) ** exponent
    count, rest = divmod(size, unit)
    if rest * 2 > unit or (rest * 2 == unit and count % 2):
        count += 1
    result = count * unit
    if result > largest:
        raise OverflowingError
    return result if value >= 0 else -result


def delta_at(products: Sequence, row: int, column: int) -> Fraction:
    """Return the exact sum of scale * up[row] . down[:, column]; `products` are (up, down, scale)."""
    total = Fraction(0)
    for up, down, scale in products:
        inner = sum(
            (
                Fraction(a) * Fraction(b)
                for a, b in zip(up[row].double().tolist(), down[:, column].double().tolist(), strict=True)
            ),
            Fraction(0),
        )
        total += Fraction(scale) * inner
    return total


def merged(weight: torch.Tensor, products: Sequence) -> torch.Tensor:
    """Return the correctly rounded sum, bit patterns and all; raise OverflowingError where there is none."""
    result = weight.clone()
    patterns, values = weight.view(VIEWS[weight.element_size()]), weight.double()
    out = result.view(patterns.dtype)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            own, added = float(values[row, column]), delta_at(products, row, column)
            if own != own or own in (float("inf"), float("-inf")) or added == 0:
                out[row, column] = patterns[row, column]
                continue
            exact = Fraction(own) + added
            number = float(rounded(exact, weight.dtype))
            if number == 0 and exact < 0:
                number = -0.0
            # Every number of these formats is a float64, so that this cast rounds nothing.
            result[row, column] = torch.tensor(number, dtype=torch.float64).to(weight.dtype)
    return result
