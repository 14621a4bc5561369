"""Merging a block in one compiled pass, from factors to the candidates of its residue; see `surgery.exact.compiled`."""

# mypy: disable-error-code="untyped-decorator, assignment"

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from surgery.exact import compiled, compiled_sums
from surgery.exact.compiled import decide, interval, likeliest, listing, move, narrow, strays, widen
from surgery.exact.compiled_sums import totals

__all__ = ["TILE", "whole_pass"]

Array = npt.NDArray[Any]

TILE = 4
"""Rows of a product that are made at once."""
_STRIP = 256
"""Columns of a product that a processor keeps at hand."""


@njit(nogil=True, error_model="numpy")
def once(weight: Array, added: Array, out: Array, where: Array) -> int:
    """Round bfloat16 weight + added (n, in) as `merge_block` does without `correct`; list what overflows."""
    rows, columns = weight.shape
    flags = np.empty(columns, np.uint8)
    found = 0
    for row in range(rows):
        for column in range(columns):
            total = widen(weight[row, column], 2) + np.float32(added[row, column])
            out[row, column] = narrow(total, 2)
            magnitude = np.abs(total)
            is_plain = (magnitude < np.float32(2.0**127)) & (magnitude > np.float32(0))
            flags[column] = np.uint8(1) - np.uint8(is_plain)
        first = found
        for at in range(first, first + listing(flags, where[found:])):
            column = where[at]
            own = widen(weight[row, column], 2)
            stays = (own == np.float32(0)) & (np.float32(added[row, column]) == np.float32(0))
            if stays or not np.abs(own) < np.inf:
                out[row, column] = weight[row, column]
            elif np.uint32(out[row, column] & 0x7FFF) >= np.uint32(0x7F80):
                where[found] = row * columns + column
                found += 1
    return found


@njit(nogil=True, error_model="numpy")
def settled(  # noqa: PLR0913 - as above
    weight: Array, start: int, up: Array, down: Array, norms: Any, rooms: Any, unit: float, out: Array, where: Array
) -> int:
    """Round listed elements by a product of their own, and keep those in the list for which that does not do.

    Args:
        weight, out: (n, in) patterns, the first row being row `start` of the matrix.
        up: (rows of the matrix, k), float64.
        down: (in, k), float64.
        norms: of the rows of `up` and of `down`; the error of a product is at most theirs times `unit`.
        rooms: bits that a row of `up` leaves, and that one of `down` takes: where they fit, a product has no error.
        where: (m) flat indices.

    Returns:
        how many are left.
    """
    columns, size, left = weight.shape[1], weight.itemsize, 0
    for index in where:
        row, column = index // columns, index % columns
        own, norm = np.float64(widen(weight[row, column], size)), norms[0][start + row] * norms[1][column]
        value = 0.0
        for term in range(up.shape[1]):
            value += up[start + row, term] * down[column, term]
        is_exact = rooms[0][start + row] >= rooms[1][column]
        if not np.abs(own) < np.inf or norm == 0.0 or (is_exact and value == 0.0):
            out[row, column] = weight[row, column]
            continue
        total = own + value
        radius = np.abs(total) * 2.0**-51 + norm * unit
        low, high = total - radius, total + radius
        if is_exact:
            # What TwoSum says was lost makes the last bit odd: the next rounding is then the only one that counts.
            part = total - own
            low = high = _to_odd(total, (own - (total - part)) + (value - part))
        found = _round_once(low, size)
        if found == _round_once(high, size) and max(np.abs(low), np.abs(high)) < 2.0**127:
            out[row, column] = found
        else:
            where[left] = index
            left += 1
    return left


@njit(inline="always")
def _to_odd(total: Any, rest: Any) -> Any:
    bits = np.float64(total).view(np.int64)
    if rest != 0.0 and bits & 1 == 0:
        bits += 1 if (rest > 0.0) == (total > 0.0) else -1
    return np.int64(bits).view(np.float64)


@njit(inline="always")
def _round_once(value: Any, size: int) -> Any:
    """Return the pattern of a float64, rounded once: by way of a float32 rounded to odd."""
    single = np.float32(value)
    bits = single.view(np.uint32)
    rest = value - np.float64(single)
    if size == 2 and rest != 0.0 and bits & np.uint32(1) == 0:
        if single == np.float32(0):
            bits = np.uint32(0x80000001) if value < 0.0 else np.uint32(1)
        elif (rest > 0.0) == (value > 0.0):
            bits = np.uint32(bits + np.uint32(1))
        else:
            bits = np.uint32(bits - np.uint32(1))
    return narrow(np.uint32(bits).view(np.float32), size)


@njit(nogil=True, error_model="numpy", fastmath={"contract"})
def product(left: Array, row: int, right: Array, begin: int, end: int, out: Array) -> None:
    """Write rows row..row+4 of left[:, begin:end] @ right[begin:end] to `out` (4, in).

    No step of it rounds (see `slices`), so fusing steps changes no bit. end - begin is a multiple of 4. Rows that
    there are not are other ones.
    """
    last, columns = left.shape[0] - 1, right.shape[1]
    r0, r1, r2, r3 = row, min(row + 1, last), min(row + 2, last), min(row + 3, last)
    for first in range(0, columns, _STRIP):
        stop = min(first + _STRIP, columns)
        p, q, r, s = out[0, first:stop], out[1, first:stop], out[2, first:stop], out[3, first:stop]
        for place in range(stop - first):
            p[place] = q[place] = r[place] = s[place] = 0.0
        for at in range(begin, end, 4):
            a0, a1, a2, a3 = left[r0, at], left[r0, at + 1], left[r0, at + 2], left[r0, at + 3]
            b0, b1, b2, b3 = left[r1, at], left[r1, at + 1], left[r1, at + 2], left[r1, at + 3]
            c0, c1, c2, c3 = left[r2, at], left[r2, at + 1], left[r2, at + 2], left[r2, at + 3]
            d0, d1, d2, d3 = left[r3, at], left[r3, at + 1], left[r3, at + 2], left[r3, at + 3]
            x0, x1, x2, x3 = (right[at, first:stop], right[at + 1, first:stop], right[at + 2, first:stop],
                              right[at + 3, first:stop])  # fmt: skip
            for place in range(stop - first):
                y0, y1, y2, y3 = x0[place], x1[place], x2[place], x3[place]
                p[place] = p[place] + a0 * y0 + a1 * y1 + a2 * y2 + a3 * y3
                q[place] = q[place] + b0 * y0 + b1 * y1 + b2 * y2 + b3 * y3
                r[place] = r[place] + c0 * y0 + c1 * y1 + c2 * y2 + c3 * y3
                s[place] = s[place] + d0 * y0 + d1 * y1 + d2 * y2 + d3 * y3


@njit(nogil=True, error_model="numpy")
def added(left: Array, row: int, right: Array, groups: Array, scales: Array, buffers: Array) -> None:
    """Write rows row..row+4 of a delta to buffers[0], as `Delta.block` does it.

    Args:
        left, right: factors of all groups, side by side.
        groups: (m, 3): where the terms of a group begin and end, and which product it belongs to.
        scales: of products.
        buffers: (3, 4, in), float64.
    """
    for index in range(groups.shape[0]):
        begin, end, which = groups[index]
        own = buffers[min(which, 1)]
        is_first = index == 0 or groups[index - 1, 2] != which
        product(left, row, right, begin, end, own if is_first else buffers[2])
        if not is_first:
            _combine(own, buffers[2], 1.0)
        if index + 1 == groups.shape[0] or groups[index + 1, 2] != which:
            if scales[which] != 1.0:
                _combine(own, own, scales[which])
            if which:
                _combine(buffers[0], own, 1.0)


@njit(nogil=True, error_model="numpy")
def _combine(into: Array, more: Array, factor: float) -> None:
    """Add `more` to `into`, both (4, in), or multiply it by a factor other than 1."""
    for row in range(into.shape[0]):
        for column in range(into.shape[1]):
            if factor == 1.0:
                into[row, column] += more[row, column]
            else:
                into[row, column] *= factor


def _built(stamp: int) -> Any:  # noqa: PLR0915 - as above
    """Return `whole_pass`: numba knows what it compiled by the time of this file, and by `stamp`, of the others."""

    @njit(nogil=True, cache=True, error_model="numpy")
    def whole_pass(  # noqa: PLR0913 - as above
        weight: Array, start: int, factors: Any, dots: Any, rule: Any, tiles: Array, is_rounded: bool, out: Array,
        where: Array, known: Any, counted: Array, sums: Array,
    ) -> None:  # fmt: skip
        """Do to a block, some rows at a time, all that is done to it, so that nothing between leaves the cache.

        Args:
            weight: (n, in) patterns, the first row being row `start` of the matrix.
            factors: of `added`: left, right, groups and scales.
            dots: of `settled`: up, down, norms, rooms and unit.
            rule: of `decide`: error (rows of the matrix), slack, is_exact, edge; and whether that rules, or `once`.
            tiles: first rows of the tiles to do, int64.
            is_rounded: whether `out` is there already.
            out: (n, in) patterns.
            where: int64, as many as elements: begins with flat indices of those that are not rounded, afterwards. Their
                tiles are left out of all that follows.
            known: guess (n * in) patterns; places, first and counts of `interval`; where of `strays`. None for none.
            counted: int64, written to: how many indices `where` has, how many `places`, how many strays, how many
                elements at places whose guess is wrong.
            sums: of `totals`.
        """
        columns = weight.shape[1]
        buffers, flags = np.empty((3, TILE, columns), np.float64), np.empty(TILE * columns, np.uint8)
        left, right, groups, scales = factors
        error, slack, is_exact, edge, is_correct = rule
        up, down, norms, rooms, unit = dots
        guess, places, first, counts, wrong = known
        open_ = several = stray = there = int(stamp < 0)
        for row in tiles:
            stop = min(row + TILE, weight.shape[0])
            added(left, start + row, right, groups, scales, buffers)
            room, found = where[open_:], 0
            for at in range(row, row if is_rounded else stop):
                delta = buffers[0, at - row : at - row + 1]
                own, result = weight[at : at + 1], out[at : at + 1]
                if is_correct:
                    bounds, listed = error[start + at : start + at + 1], room[found:]
                    more = decide(own, delta, bounds, slack, is_exact, edge, result, listed)
                    if more:
                        more = settled(own, start + at, up, down, norms, rooms, unit, result, listed[:more])
                else:
                    more = once(own, delta, result, room[found:])
                move(room[found : found + more], at * columns)
                found += more
            if found:
                open_ += found
                continue
            offset, end = row * columns, stop * columns
            old, new = weight.reshape(-1)[offset:end], out.reshape(-1)[offset:end]
            delta = buffers.reshape(-1)[: end - offset]
            totals(old, new, delta, sums)
            if guess.size:
                mine, hints = guess[offset:end], flags[: end - offset]
                likeliest(new, delta, mine, hints.view(np.bool_))
                here = places[several:]
                found = interval(new, delta, hints.view(np.bool_), mine, here, first[several:], counts[several:])
                more, lost = strays(old, mine, here[:found], hints, wrong[stray:])
                move(here[:found], offset)
                move(wrong[stray : stray + more], offset)
                several, stray, there = several + found, stray + more, there + lost
        counted[0], counted[1], counted[2], counted[3] = open_, several, stray, there

    return whole_pass


whole_pass = _built(zlib.crc32(b"".join(Path(str(one.__file__)).read_bytes() for one in (compiled, compiled_sums))))
