"""The bodies of residues, written and read by compiled loops; see `surgery.exact.compiled` and `residue`.

Forms with candidates only: `is_zeros` tells `zeros` from `ranks`.
"""

# mypy: disable-error-code="untyped-decorator, assignment"

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from surgery.exact.compiled import order_of

__all__ = ["body", "differ", "filled", "sizes"]

Array = npt.NDArray[Any]

_MOST_BITS = 33
"""One more than the candidates of an element ever take."""


@njit(inline="always")
def _width(count: Any) -> Any:
    width, rest = 1, (count - 1) >> 1  # one bit is what nearly all of them take
    while rest:
        width, rest = width + 1, rest >> 1
    return width


@njit(inline="always")
def _may_be_zero(first: Any, count: Any) -> Any:
    return (first <= 0) & (first + count > 0)


@njit(inline="always")
def _rank(pattern: Any, first: Any, count: Any, size: int) -> Any:
    """Return which candidate a pattern (sign extended) is, or -1."""
    rank = order_of(np.int64(pattern), size) - first
    return rank if 0 <= rank < count else -1


@njit(nogil=True, cache=True, error_model="numpy")
def _starts(first: Array, counts: Array, is_zeros: bool) -> Array:
    """Return the bit at which the codes of each width begin, and where the last ones end: widths have whole bytes."""
    starts = np.zeros(_MOST_BITS + 1, np.int64)
    for at in range(first.size):
        if not (is_zeros and _may_be_zero(first[at], counts[at])):
            width = _width(counts[at])
            starts[width + 1] += width
    for width in range(_MOST_BITS):
        starts[width + 1] = starts[width] + (starts[width + 1] + 7) // 8 * 8
    return starts


@njit(nogil=True, cache=True, error_model="numpy")
def sizes(own: Array, places: Array, first: Array, counts: Array, is_zeros: bool) -> Any:
    """Return how many elements at `places` have to be patched, and how many bytes the others' codes take.

    Args:
        own: (n) patterns, signed; none to ask for the codes alone.
        places, first, counts: (m), int64, of `Candidates`.
        is_zeros: the form.
    """
    patches = 0
    for at in range(places.size if own.size else 0):
        pattern = own[places[at]]
        if is_zeros and _may_be_zero(first[at], counts[at]):
            patches += np.int64(pattern != 0)
        else:
            patches += np.int64(_rank(pattern, first[at], counts[at], own.itemsize) < 0)
    return patches, _starts(first, counts, is_zeros)[-1] // 8


@njit(nogil=True, cache=True, error_model="numpy")
def body(  # noqa: PLR0913 - a compiled loop takes arrays
    own: Array, places: Array, first: Array, counts: Array, is_zeros: bool, strays: Array,
    indices: Array, patterns: Array, codes: Array,
) -> None:  # fmt: skip
    """Write the three parts of a body.

    Args:
        own, places, first, counts, is_zeros: as in `sizes`.
        strays: ascending, what has to be patched elsewhere.
        indices, patterns, codes: as many as `sizes` and `strays` say; codes (uint8) are 0.
    """
    starts = _starts(first, counts, is_zeros)
    patched = stray = 0
    for at in range(places.size):
        index = places[at]
        pattern = own[index]
        if is_zeros and _may_be_zero(first[at], counts[at]):
            is_wrong = pattern != 0
        else:
            rank, width = _rank(pattern, first[at], counts[at], own.itemsize), _width(counts[at])
            is_wrong = rank < 0
            bit = starts[width]
            starts[width] += width
            rank = max(rank, 0)
            for shift in range(width):
                codes[(bit + shift) >> 3] |= np.uint8(((rank >> shift) & 1) << ((bit + shift) & 7))
        if is_wrong:
            while stray < strays.size and strays[stray] < index:
                indices[patched], patterns[patched] = strays[stray], own[strays[stray]]
                patched, stray = patched + 1, stray + 1
            indices[patched], patterns[patched] = index, pattern
            patched += 1
    for rest in strays[stray:]:
        indices[patched], patterns[patched] = rest, own[rest]
        patched += 1


@njit(nogil=True, cache=True, error_model="numpy")
def filled(guess: Array, places: Array, first: Array, counts: Array, is_zeros: bool, codes: Array) -> bool:
    """Write into `guess` (n signed patterns) what codes say of elements with several candidates.

    Args:
        guess, places, first, counts, is_zeros: as above.
        codes: uint8, as many as `sizes` says.

    Returns:
        whether all of those candidates exist.
    """
    starts = _starts(first, counts, is_zeros)
    for at in range(places.size):
        if is_zeros and _may_be_zero(first[at], counts[at]):
            guess[places[at]] = 0
            continue
        width, rank = _width(counts[at]), 0
        bit = starts[width]
        starts[width] += width
        for shift in range(width):
            rank |= np.int64((codes[(bit + shift) >> 3] >> ((bit + shift) & 7)) & 1) << shift
        if rank >= counts[at]:
            return False
        guess[places[at]] = order_of(first[at] + rank, guess.itemsize)
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def differ(one: Array, other: Array) -> int:
    """Return how many elements of two arrays (n) of integers are not the same."""
    found = 0
    for index in range(one.size):
        found += np.int64(one[index] != other[index])
    return found
