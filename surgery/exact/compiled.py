"""The loops over elements, compiled by numba: the bits that torch and numpy give, in one pass instead of some twenty.

Import this by way of `surgery.exact.loops`: numba is an extra. Every arithmetic step is one IEEE operation, as in the
forms of torch: without numba's `fastmath` nothing is reordered and nothing is fused.

Arrays are contiguous. Weights are patterns: uint16 for bfloat16, uint32 for float32.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["decide", "interval", "likeliest", "totals"]

Array = npt.NDArray[Any]

_LANES = 16


@njit(inline="always")
def _widen(pattern: Any, size: int) -> Any:
    """Return the float32 of a pattern."""
    if size == 2:
        return np.uint32(np.uint32(pattern) << np.uint32(16)).view(np.float32)
    return np.uint32(pattern).view(np.float32)


@njit(inline="always")
def _narrow(value: Any, size: int) -> Any:
    """Return the pattern of a float32, which is no NaN: to nearest, ties to even."""
    bits = np.float32(value).view(np.uint32)
    if size == 2:
        half = np.uint32(0x7FFF) + np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        return np.uint32(np.uint32(bits + half) >> np.uint32(16))
    return bits


@njit(nogil=True, cache=True, error_model="numpy")
def decide(  # noqa: C901, PLR0913 - a compiled loop is one function, and takes arrays
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
    flags = np.empty(columns + 8, np.uint8)
    flags[columns:] = 0
    eights = flags[: (columns + 7) // 8 * 8].view(np.uint64)
    found = 0
    below, above = 1.0 - slack, 1.0 + slack
    for row in range(rows):
        bound = error[row]
        if bound == 0.0:
            out[row] = weight[row]
            continue
        if is_exact:
            for column in range(columns):
                own, more = np.float64(_widen(weight[row, column], size)), added[row, column]
                total = own + more
                out[row, column] = _narrow(np.float32(total), size)
                is_whole = (total - own == more) & (total - more == own)
                is_inside = (np.abs(total) < 2.0**127) & (total != 0.0)
                flags[column] = np.uint8(1) - np.uint8(is_whole & is_inside)
        else:
            for column in range(columns):
                total = np.float64(_widen(weight[row, column], size)) + added[row, column]
                magnitude = np.abs(total)
                low = _narrow(np.float32(magnitude * below - bound), size)
                high = _narrow(np.float32(magnitude * above + bound), size)
                out[row, column] = _narrow(np.float32(total), size)
                flags[column] = np.uint8(low != high) | np.uint8(high >= edge)
        for eight in range(eights.size):
            if eights[eight] != 0:
                for column in range(8 * eight, min(8 * eight + 8, columns)):
                    if flags[column] != 0:
                        where[found] = row * columns + column
                        found += 1
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
    size = merged.itemsize
    sign, exponents = np.uint32(0x8000), np.uint32(0x7F80)
    if size == 4:
        sign, exponents = np.uint32(0x80000000), np.uint32(0x7F800000)
    for index in range(merged.size):
        own = np.uint32(merged[index])
        value = np.float32(np.float64(_widen(own, size)) - delta[index])
        found = np.uint32(_narrow(np.float32(0) if np.isnan(value) else value, size))
        found = np.uint32(0) if found == sign else found
        guess[index] = found
        below = np.uint32(found & ~sign)
        below = np.uint32(np.uint32(max(below, np.uint32(1)) - np.uint32(1)) & exponents)
        flags[index] = np.uint32(own & exponents) > below


@njit(inline="always")
def _order(pattern: Any, size: int) -> Any:
    """Return a pattern, sign extended, in the order of numbers; its own inverse."""
    return pattern ^ ((1 << (8 * size - 1)) - 1) if pattern < 0 else pattern


@njit(inline="always")
def _signed(pattern: Any, size: int) -> Any:
    return np.int64(np.int16(pattern)) if size == 2 else np.int64(np.int32(pattern))


@njit(inline="always")
def _number(order: Any, size: int) -> Any:
    limit = (1 << (8 * size - 1)) - 1
    return np.float64(_widen(np.uint32(_order(min(max(order, -limit - 1), limit), size)), size))


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
    found = 0
    whole = flags.size // 8 * 8
    eights = flags[:whole].view(np.uint64)
    for start in range(0, flags.size, 8):
        if start < whole and eights[start // 8] == 0:
            continue
        for index in range(start, min(start + 8, flags.size)):
            if not flags[index]:
                continue
            order = _order(_signed(merged[index], size), size)
            here = _number(order, size)
            low = (_number(order - 1, size) + here) * 0.5 - delta[index]
            high = (here + _number(order + 1, size)) * 0.5 - delta[index]
            is_sound = np.isfinite(low) and np.isfinite(high)
            low = low if np.isfinite(low) else 0.0
            high = high if np.isfinite(high) else 0.0
            begin, end = _narrow(np.float32(low), size), _narrow(np.float32(high), size)
            begin_at = _order(_signed(begin, size), size) + np.int64(np.float64(_widen(begin, size)) < low)
            end_at = _order(_signed(end, size), size) - np.int64(np.float64(_widen(end, size)) > high)
            count = min(end_at - begin_at + 1, 1 << (8 * size)) if is_sound else 0
            if count == 1:
                guess[index] = np.uint32(_order(begin_at, size))
            elif count > 1:
                places[found], first[found], counts[found] = index, begin_at, count
                found += 1
    return found


@njit(nogil=True, cache=True, error_model="numpy")
def totals(old: Array, new: Array, delta: Array, found: Array) -> None:
    """Add up what a report tells of a block.

    Args:
        old, new: (n) patterns.
        delta: (n), float64: what was to be added.
        found: (5), float64: afterwards the squares of the base, of the delta, and of what storing lost, summed; how
            many elements were to move; how many of them did not.
    """
    size = old.itemsize
    base, wanted, lost = np.zeros(_LANES, np.float64), np.zeros(_LANES, np.float64), np.zeros(_LANES, np.float64)
    moving, stuck = np.zeros(_LANES, np.int64), np.zeros(_LANES, np.int64)
    whole = old.size // _LANES * _LANES
    # Sums of their own for each lane: a processor adds them at once, and always in this order.
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            own, more = np.float64(_widen(old[start + lane], size)), delta[start + lane]
            step = np.float64(_widen(new[start + lane], size)) - own
            base[lane] += own * own
            wanted[lane] += more * more
            lost[lane] += (step - more) * (step - more)
            moving[lane] += np.int64(more != 0.0)
            stuck[lane] += np.int64((more != 0.0) & (step == 0.0))
    for index in range(whole, old.size):
        own, more = np.float64(_widen(old[index], size)), delta[index]
        step = np.float64(_widen(new[index], size)) - own
        base[0] += own * own
        wanted[0] += more * more
        lost[0] += (step - more) * (step - more)
        moving[0] += np.int64(more != 0.0)
        stuck[0] += np.int64((more != 0.0) & (step == 0.0))
    found[0], found[1], found[2], found[3], found[4] = base.sum(), wanted.sum(), lost.sum(), moving.sum(), stuck.sum()
