"""What a report tells of a block, added up by a compiled loop; see `surgery.exact.compiled`."""

# mypy: disable-error-code="untyped-decorator, assignment"

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from surgery.exact.compiled import widen

__all__ = ["totals"]

Array = npt.NDArray[Any]

_LANES = 128
"""Sums that are kept apart."""
_CHUNK = 4096
"""Elements that are summed in one go."""


@njit(nogil=True, cache=True, error_model="numpy")
def totals(old: Array, new: Array, delta: Array, found: Array) -> None:
    """Add up what a report tells of a block.

    Args:
        old, new: (n) patterns.
        delta: (n), float64: what was to be added.
        found: (5), float64, added to: the squares of the base, of the delta, and of what storing lost; how many
            elements were to move; how many of them did not. NaN and infinities of the base are left out.
    """
    size, own = old.itemsize, np.empty(5, np.float64)
    moving, stuck = np.zeros(_LANES, np.int32), np.zeros(_LANES, np.int32)
    short, wide = np.zeros((3, _LANES), np.float32), np.zeros((3, _LANES), np.float64)
    for begin in range(0, old.size, _CHUNK):
        end = min(begin + _CHUNK, old.size)
        whole = begin + (end - begin) // _LANES * _LANES
        before, after, added = old[begin:whole], new[begin:whole], delta[begin:whole]
        # float32 holds six digits of the sums of bfloat16, where squares are in its range.
        if size == 2:
            _add_short(before, after, added, short[0], short[1], short[2], moving, stuck)
            own[0], own[1], own[2] = _taken(short[0]), _taken(short[1]), _taken(short[2])
            low, high = 2.0**-60, 2.0**100
        else:
            _add_wide(before, after, added, wide[0], wide[1], wide[2], moving, stuck)
            own[0], own[1], own[2] = _taken(wide[0]), _taken(wide[1]), _taken(wide[2])
            low, high = -1.0, np.inf
        own[3], own[4] = _taken(moving), _taken(stuck)
        is_plausible = low < own[0] < high and low < own[1] < high and low < own[2] < high
        for index in range(5 if is_plausible else 0):
            found[index] += own[index]
        for index in range(whole if is_plausible else begin, end):
            base, more = np.float64(widen(old[index], size)), delta[index]
            if np.abs(base) < np.inf:
                step = np.float64(widen(new[index], size)) - base
                found[0] += base * base
                found[1] += more * more
                found[2] += (step - more) * (step - more)
                found[3] += np.float64(more != 0.0)
                found[4] += np.float64((more != 0.0) & (step == 0.0))


@njit(nogil=True, error_model="numpy")
def _taken(lanes: Array) -> Any:
    """Return the sum of some lanes, always in this order, and make them 0."""
    total = np.float64(0)
    for lane in range(_LANES):
        total += np.float64(lanes[lane])
        lanes[lane] = 0
    return total


@njit(nogil=True, error_model="numpy")
def _add_short(  # noqa: PLR0913 - as above
    old: Array, new: Array, delta: Array, base: Array, wanted: Array, lost: Array, moving: Array, stuck: Array
) -> None:
    """Add up elements, a multiple of _LANES, of bfloat16 in float32, a sum for each lane."""
    for start in range(0, old.size, _LANES):
        before, after = old[start : start + _LANES], new[start : start + _LANES]
        added = delta[start : start + _LANES]
        for lane in range(_LANES):
            own, more = widen(before[lane], 2), np.float32(added[lane])
            step = widen(after[lane], 2) - own
            base[lane] += own * own
            wanted[lane] += more * more
            lost[lane] += (step - more) * (step - more)
            moving[lane] += np.int32(more != np.float32(0))
            stuck[lane] += np.int32((more != np.float32(0)) & (step == np.float32(0)))


@njit(nogil=True, error_model="numpy")
def _add_wide(  # noqa: PLR0913 - as above
    old: Array, new: Array, delta: Array, base: Array, wanted: Array, lost: Array, moving: Array, stuck: Array
) -> None:
    """Do so for float32, in float64."""
    for start in range(0, old.size, _LANES):
        before, after = old[start : start + _LANES], new[start : start + _LANES]
        added = delta[start : start + _LANES]
        for lane in range(_LANES):
            own, more = np.float64(widen(before[lane], 4)), added[lane]
            step = np.float64(widen(after[lane], 4)) - own
            base[lane] += own * own
            wanted[lane] += more * more
            lost[lane] += (step - more) * (step - more)
            moving[lane] += np.int32(more != 0.0)
            stuck[lane] += np.int32((more != 0.0) & (step == 0.0))
