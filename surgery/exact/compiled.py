"""The loops over elements, compiled by numba: the bits that torch and numpy give, in one pass instead of some twenty.

Import this by way of `surgery.exact.loops`: numba is an extra. Every arithmetic step is one IEEE operation, as in the
forms of torch: without numba's `fastmath` nothing is reordered and nothing is fused.

Arrays are contiguous. Weights are patterns: uint16 for bfloat16, uint32 for float32.
"""

# mypy: disable-error-code="untyped-decorator, assignment"

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["decide", "interval", "likeliest", "listing", "move", "narrow", "order_of", "strays", "widen"]

Array = npt.NDArray[Any]

_PART = 4096
"""Elements whose intermediate results stay next to a processor."""


@njit(inline="always")
def widen(pattern: Any, size: int) -> Any:
    """Return the float32 of a pattern."""
    if size == 2:
        return np.uint32(np.uint32(pattern) << np.uint32(16)).view(np.float32)
    return np.uint32(pattern).view(np.float32)


@njit(inline="always")
def narrow(value: Any, size: int) -> Any:
    """Return the pattern of a float32, which is no NaN: to nearest, ties to even."""
    bits = np.float32(value).view(np.uint32)
    if size == 2:
        half = np.uint32(0x7FFF) + np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        return np.uint32(np.uint32(bits + half) >> np.uint32(16))
    return bits


@njit(nogil=True, error_model="numpy")
def _decide_exact(weight: Array, added: Array, out: Array, flags: Array) -> None:
    for column in range(weight.size):
        own, more = np.float64(widen(weight[column], 4)), added[column]
        total = own + more
        out[column] = narrow(np.float32(total), 4)
        is_whole = (total - own == more) & (total - more == own)
        is_inside = (np.abs(total) < 2.0**127) & (total != 0.0)
        flags[column] = np.uint8(1) - np.uint8(is_whole & is_inside)


@njit(nogil=True, error_model="numpy")
def _decide_wide(  # noqa: PLR0913 - as below
    weight: Array, added: Array, slack: float, bound: float, edge: int, out: Array, flags: Array
) -> None:
    for column in range(weight.size):
        total = np.float64(widen(weight[column], 4)) + added[column]
        magnitude = np.abs(total)
        low = narrow(np.float32(magnitude * (1.0 - slack) - bound), 4)
        high = narrow(np.float32(magnitude * (1.0 + slack) + bound), 4)
        out[column] = narrow(np.float32(total), 4)
        flags[column] = np.uint8(low != high) | np.uint8(high >= edge)


@njit(nogil=True, error_model="numpy")
def _decide_short(weight: Array, added: Array, bound: Any, out: Array, flags: Array, totals: Array) -> None:
    """Round a row to bfloat16, and flag what may round otherwise, in float32: twice as many lanes as float64 has.

    The sum, cast to float32, is off by less than 2**-23 of itself and `bound`. Where that is less than its distance
    from the middle of its two neighbours, and than a quarter of a step, no middle is between it and the exact sum.
    """
    # Loops over numbers of one width: a processor takes as many of them at once as fit its registers.
    for column in range(weight.size):
        totals[column] = np.float32(np.float64(widen(weight[column], 2)) + added[column])
    for column in range(weight.size):
        total = np.float32(totals[column])
        bits = total.view(np.uint32)
        out[column] = np.uint32(bits + np.uint32(0x8000)) >> np.uint32(16)
        middle = np.uint32(np.uint32(bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)).view(np.float32)
        magnitude = np.abs(total)
        margin = magnitude * np.float32(2.0**-22) + bound
        is_far = (np.abs(total - middle) > margin) & (magnitude * np.float32(2.0**-10) > margin)
        flags[column] = np.uint8(1) - np.uint8(is_far & (magnitude < np.float32(2.0**127)))


@njit(nogil=True, error_model="numpy")
def move(indices: Array, by: int) -> None:
    """Add `by` to each of some indices: as an expression of arrays it takes numba seconds to compile."""
    for at in range(indices.size):
        indices[at] += by


@njit(nogil=True, cache=True, error_model="numpy")
def decide(  # noqa: PLR0913 - a compiled loop is one function, and takes arrays
    weight: Array, added: Array, error: Array, slack: float, is_exact: bool, edge: int, out: Array, where: Array
) -> int:
    """Round weight + added into `out`, and list the elements for which that is not certain; see `filter`.

    Args:
        weight: (n, in) patterns.
        added: (n, in), float64.
        error: (n), float64: how far `added` may be from what it stands for; rows with exactly 0 stay as they are.
        slack: at least four times the unit roundoff.
        is_exact: `added` has no error; what is decided is whether the sum has one.
        edge: the first magnitude that is not finite.
        out: (n, in) patterns.
        where: int64, as many as elements: begins with flat indices, afterwards.

    Returns:
        how many indices there are.
    """
    rows, columns = weight.shape
    size = weight.itemsize
    flags, totals = np.empty(columns, np.uint8), np.empty(columns, np.float32)
    found = 0
    for row in range(rows):
        bound = error[row]
        if bound == 0.0:
            out[row] = weight[row]
            continue
        if is_exact:
            _decide_exact(weight[row], added[row], out[row], flags)
        elif size == 2:
            _decide_short(weight[row], added[row], np.float32(bound * (1.0 + 2.0**-20)), out[row], flags, totals)
        else:
            _decide_wide(weight[row], added[row], slack, bound, edge, out[row], flags)
        listed = listing(flags, where[found:])
        move(where[found : found + listed], row * columns)
        found += listed
    return found


@njit(nogil=True, cache=True, error_model="numpy")
def likeliest(merged: Array, delta: Array, guess: Array, flags: Array) -> None:
    """Write merged - delta, rounded, and where there may be several candidates; see `candidates`.

    Args:
        merged: (n) patterns.
        delta: (n), float64.
        guess: (n) patterns.
        flags: (n), bool.
    """
    if merged.itemsize == 2:
        parts = np.empty(min(merged.size, _PART), np.float32)
        for begin in range(0, merged.size, _PART):
            part = slice(begin, min(begin + _PART, merged.size))
            _likeliest_short(merged[part], delta[part], guess[part], flags[part], parts)
        return
    for index in range(merged.size):
        own = np.uint32(merged[index])
        value = np.float32(np.float64(widen(own, 4)) - delta[index])
        found = np.uint32(narrow(np.float32(0) if np.isnan(value) else value, 4))
        found = np.uint32(0) if found == np.uint32(0x80000000) else found
        guess[index] = found
        below = np.uint32(found & np.uint32(0x7FFFFFFF))
        below = np.uint32(np.uint32(max(below, np.uint32(1)) - np.uint32(1)) & np.uint32(0x7F800000))
        flags[index] = np.uint32(own & np.uint32(0x7F800000)) > below


@njit(nogil=True, error_model="numpy")
def _likeliest_short(merged: Array, delta: Array, guess: Array, flags: Array, differences: Array) -> None:
    """Do so for bfloat16: loops over numbers of one width, as in `_decide_short`."""
    for index in range(merged.size):
        differences[index] = np.float32(np.float64(widen(merged[index], 2)) - delta[index])
    for index in range(merged.size):
        value = np.float32(differences[index])
        found = narrow(np.float32(np.float32(0) if np.isnan(value) else value), 2)
        guess[index] = np.uint32(0) if found == np.uint32(0x8000) else found
    for index in range(merged.size):
        below = np.uint16(guess[index] & np.uint16(0x7FFF))
        below = np.uint16(np.uint16(max(below, np.uint16(1)) - np.uint16(1)) & np.uint16(0x7F80))
        flags[index] = np.uint16(merged[index] & np.uint16(0x7F80)) > below


@njit(nogil=True, cache=True, error_model="numpy")
def listing(flags: Array, places: Array) -> int:
    """Write indices of what is not 0 in `flags` (n; bool or uint8) to the start of `places` (n), return how many."""
    found = several = 0
    whole = flags.size // 8 * 8
    eights = flags[:whole].view(np.uint64)
    # A branch that nobody foretells costs more than a store: first eights with some, then those.
    some = np.empty(eights.size, np.int64)
    for eight in range(eights.size):
        some[several] = 8 * eight
        several += np.int64(eights[eight] != 0)
    for at in range(several):
        for index in range(some[at], some[at] + 8):
            places[found] = index
            found += np.int64(flags[index])
    for index in range(whole, flags.size):
        if flags[index]:
            places[found] = index
            found += 1
    return found


@njit(inline="always")
def order_of(pattern: Any, size: int) -> Any:
    """Return a pattern, sign extended, in the order of numbers; its own inverse."""
    return pattern ^ ((1 << (8 * size - 1)) - 1) if pattern < 0 else pattern


@njit(inline="always")
def _signed(pattern: Any, size: int) -> Any:
    return np.int64(np.int16(pattern)) if size == 2 else np.int64(np.int32(pattern))


@njit(inline="always")
def _number(order: Any, size: int) -> Any:
    limit = (1 << (8 * size - 1)) - 1
    return np.float64(widen(np.uint32(order_of(min(max(order, -limit - 1), limit), size)), size))


@njit(nogil=True, cache=True, error_model="numpy")
def interval(  # noqa: PLR0913 - as above
    merged: Array, delta: Array, flags: Array, guess: Array, places: Array, first: Array, counts: Array
) -> int:
    """Work out the candidates of flagged elements: correct the guess where there is one, list the others.

    Args:
        merged, delta, flags, guess: of `likeliest`.
        places, first, counts: int64, as many as flags: they begin with what `Candidates` says of them, afterwards.

    Returns:
        how many have several.
    """
    size = merged.itemsize
    listed = listing(flags, places)
    added = np.empty(listed, np.float64)
    for at in range(listed):
        first[at], added[at] = _signed(merged[places[at]], size), delta[places[at]]
    # Several at once, side by side and without a branch; what came of them is sorted out afterwards.
    for at in range(listed):
        order = order_of(first[at], size)
        here = _number(order, size)
        low = (_number(order - 1, size) + here) * 0.5 - added[at]
        high = (here + _number(order + 1, size)) * 0.5 - added[at]
        is_sound = (np.abs(low) < np.inf) & (np.abs(high) < np.inf)
        low = low if is_sound else 0.0
        high = high if is_sound else 0.0
        begin, end = narrow(np.float32(low), size), narrow(np.float32(high), size)
        begin_at = order_of(_signed(begin, size), size) + np.int64(np.float64(widen(begin, size)) < low)
        end_at = order_of(_signed(end, size), size) - np.int64(np.float64(widen(end, size)) > high)
        first[at] = begin_at
        counts[at] = min(end_at - begin_at + 1, 1 << (8 * size)) if is_sound else 0
    found = 0
    for at in range(listed):
        index, begin_at, count = places[at], first[at], counts[at]
        if count == 1:
            guess[index] = np.uint32(order_of(begin_at, size))
        places[found], first[found], counts[found] = index, begin_at, count
        found += np.int64(count > 1)
    return found


@njit(nogil=True, cache=True, error_model="numpy")
def strays(own: Array, guess: Array, places: Array, flags: Array, where: Array) -> Any:
    """List where the guess is wrong, apart from `places`.

    Args:
        own, guess: (n) patterns.
        places: (m), where there are several candidates.
        flags: (n), uint8, to write to.
        where: int64, as many as elements, begins with indices afterwards.

    Returns:
        how many there are, and how many there are at `places`.
    """
    for index in range(own.size):
        flags[index] = np.uint8(own[index] != guess[index])
    there = 0
    for index in places:
        there += flags[index]
        flags[index] = 0
    return listing(flags, where), there
