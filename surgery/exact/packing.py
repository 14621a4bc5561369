"""Small integers of a few bits each, grouped by width, without indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["pack", "packed_size", "unpack"]

Ints = npt.NDArray[Any]


def packed_size(widths: Ints) -> int:
    """Return the bytes that numbers of these widths take."""
    counts = np.bincount(widths) if widths.size else np.zeros(0, np.int64)
    return sum((int(count) * width + 7) // 8 for width, count in enumerate(counts))


def _present(widths: Ints) -> list[int]:
    return np.flatnonzero(np.bincount(widths)).tolist() if widths.size else []


def pack(numbers: Ints, widths: Ints) -> bytes:
    """Return `numbers` (m), each below 2**width, as bits: for each width those of this width in their order."""
    found = []
    for width in _present(widths):
        chosen = numbers[widths == width]
        # One bit is what nearly all of them take.
        bits = chosen if width == 1 else (chosen[:, None] >> np.arange(width)) & 1
        found.append(np.packbits(bits.astype(np.uint8), bitorder="little").tobytes())
    return b"".join(found)


def unpack(data: bytes, widths: Ints) -> Ints:
    """Return the numbers (m, int64) of `pack`; `data` has `packed_size(widths)` bytes."""
    numbers = np.zeros(widths.shape, np.int64)
    start = 0
    for width in _present(widths):
        chosen = widths == width
        count = int(chosen.sum()) * width
        part = np.frombuffer(data, np.uint8, (count + 7) // 8, start)
        bits = np.unpackbits(part, count=count, bitorder="little")
        if width > 1:
            bits = bits.reshape(-1, width).astype(np.int64) @ (np.int64(1) << np.arange(width, dtype=np.int64))
        numbers[chosen] = bits
        start += part.size
    return numbers
