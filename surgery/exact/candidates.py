"""Which originals a merged block may have had: all that follows from W' and the delta, the same on every machine.

Where W' lies in a higher binade than what it came from, several W round to the same W'; the missing information is
which of them it was. Nothing but single IEEE operations is used: differences and halves in float64, and casts.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from surgery.exact.loops import compiled_for, unsigned
from surgery.exact.rounding import integers
from surgery.exact.scratch import scratch

__all__ = ["Candidates", "candidates", "patterns", "unpatterned"]

Ints = npt.NDArray[Any]
_SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}

_EXPONENTS = {
    torch.float32: 0x7F800000,
    torch.bfloat16: 0x7F80,
    torch.float16: 0x7C00,
    torch.float8_e4m3fn: 0x78,
    torch.float8_e5m2: 0x7C,
}
_LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


_IN_CACHE = 1 << 17


@dataclass(frozen=True)
class Candidates:
    """What is known of a block.

    Attributes:
        guess: (n), bit patterns as signed integers: the likeliest original of each element.
        places: (m), indices of elements with several candidates, ascending.
        first: (m), int64, the first candidate of each in the order of numbers.
        counts: (m), int64, the number of candidates, at least 2.
    """

    guess: Ints
    places: Ints
    first: Ints
    counts: Ints

    @property
    def widths(self) -> Ints:
        """Return (m), int64: bits that tell the candidates of each place apart, at least 1."""
        return np.frexp((self.counts - 1).astype(np.float64))[1].astype(np.int64)

    def filled(self, ranks: Ints) -> Ints:
        """Return patterns with the candidate `ranks` (m) at each place."""
        result = self.guess.copy()
        result[self.places] = self.chosen(ranks)
        return result

    def chosen(self, ranks: Ints) -> Ints:
        """Return patterns (m) of the candidate `ranks` at the places."""
        return _order(self.first + ranks, self.guess.dtype.itemsize).astype(self.guess.dtype)

    @property
    def may_be_zero(self) -> Ints:
        """Which of the places may have been zero."""
        may_be: Ints = (self.first <= 0) & (self.first + self.counts > 0)
        return may_be

    def zeros(self) -> Candidates:
        """Return the same with zero as the likeliest original of every element that may have been zero.

        Pruned and ternary weights are zero far more often than their neighbours among the numbers.
        """
        may_be = self.may_be_zero
        guess = self.guess.copy()
        guess[self.places[may_be]] = 0
        rest = ~may_be
        return Candidates(guess, self.places[rest], self.first[rest], self.counts[rest])

    def ranks(self, original: Ints) -> Ints:
        """Return which candidate each place of `original` (n) patterns is; 0 where it is none of them."""
        ranks = _order(original[self.places].astype(np.int64), original.dtype.itemsize) - self.first
        return np.where((ranks >= 0) & (ranks < self.counts), ranks, 0)


def patterns(tensor: torch.Tensor) -> Ints:
    """Return the bit patterns of a tensor, flat, as signed integers."""
    found = integers(tensor).view(-1).numpy()
    return found.view(_SIGNED[found.dtype.itemsize])


def unpatterned(found: Ints, like: torch.Tensor) -> torch.Tensor:
    """Return bit patterns as a tensor of the dtype and shape of `like`."""
    return torch.from_numpy(np.ascontiguousarray(found)).view(like.dtype).view(like.shape)


def candidates(merged: torch.Tensor, delta: torch.Tensor) -> Candidates:
    """Return the candidates for W, where `merged` (any shape) is W + `delta` (float64) rounded, or nearly so.

    For integer dtypes it is W + floor(delta + 1/2), in units of the grid, which has one candidate.
    """
    none = np.empty(0, np.int64)
    if not merged.is_floating_point():
        return Candidates(_on_grid(merged, delta), none, none, none)
    loops = compiled_for(merged)
    if loops is not None:
        return _compiled(loops, merged.reshape(-1), delta.reshape(-1))
    guess, places = _likeliest(merged.reshape(-1), delta.reshape(-1))
    if not places.size:
        return Candidates(guess, none, none, none)
    own = patterns(merged)
    low, high = _interval(own[places].astype(np.int64), delta.reshape(-1)[torch.from_numpy(places)], merged.dtype)
    counts = np.clip(high - low + 1, 0, 1 << (8 * guess.dtype.itemsize))
    single = counts == 1
    guess[places[single]] = _order(low[single], guess.dtype.itemsize).astype(guess.dtype)
    many = counts > 1
    return Candidates(guess, places[many], low[many], counts[many])


def _compiled(loops: ModuleType, merged: torch.Tensor, delta: torch.Tensor) -> Candidates:
    """Do as `candidates` does, part by part in compiled passes."""
    guess, own, wide = np.empty(len(merged), unsigned(merged).dtype), unsigned(merged), delta.contiguous().numpy()
    found = []
    for start in range(0, len(guess), _IN_CACHE):
        part = slice(start, start + _IN_CACHE)
        size = len(guess[part])
        flags = scratch("flags", (size,), torch.bool).numpy()
        places, first, counts = scratch("several", (3, size), torch.int64).numpy()
        loops.likeliest(own[part], wide[part], guess[part], flags)
        count = loops.interval(own[part], wide[part], flags, guess[part], places, first, counts)
        found.append((places[:count] + start, first[:count].copy(), counts[:count].copy()))
    places, first, counts = (np.concatenate(several) for several in zip(*found, strict=True))
    return Candidates(guess.view(_SIGNED[guess.dtype.itemsize]), places, first, counts)


def _likeliest(merged: torch.Tensor, delta: torch.Tensor) -> tuple[Ints, Ints]:
    """Return merged - delta, rounded, as patterns; and indices of elements that may have several candidates.

    Those are the ones that W' has in a higher binade than numbers next to merged - delta, where several round to one.
    """
    rounded = torch.empty_like(merged)
    guess, own = patterns(rounded), patterns(merged)
    kind, mask = guess.dtype.type, _EXPONENTS.get(merged.dtype)
    flags = np.zeros(guess.size, np.bool_)
    for start in range(0, guess.size, _IN_CACHE):
        part = slice(start, start + _IN_CACHE)
        wide = scratch("wide", (len(merged[part]),), torch.float64).copy_(merged[part])
        rounded[part] = _nearest(wide.sub_(delta[part]), merged.dtype)
        # A difference too small for the dtype may come out as -0, which weights seldom are.
        negative_zero = np.iinfo(guess.dtype).min
        if guess[part].min() == negative_zero:
            guess[part][guess[part] == negative_zero] = 0
        if mask is not None:
            below, mine = (scratch(name, tuple(wide.shape), integers(rounded[:0]).dtype).numpy() for name in ("a", "b"))
            below, mine = below.view(guess.dtype), mine.view(guess.dtype)
            np.bitwise_and(guess[part], kind(np.iinfo(guess.dtype).max), out=below)
            np.subtract(np.maximum(below, 1, out=below), 1, out=below)
            np.bitwise_and(below, kind(mask), out=below)
            np.greater(np.bitwise_and(own[part], kind(mask), out=mine), below, out=flags[part])
            if merged.element_size() == 1:
                # Normal weights become zero, of either sign, so often that the sign is worth a bit.
                flags[part] |= guess[part] == 0
    return guess, np.flatnonzero(flags)


def _nearest(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round float64, which may be written to, by way of float32, NaN to 0: a fixed rule, if not the best rounding."""
    if dtype in _LARGEST:
        value = value.clamp_(-_LARGEST[dtype], _LARGEST[dtype])  # past the end, versions of torch differ
    if dtype != torch.float64:
        value = scratch("single", tuple(value.shape), torch.float32).copy_(value)
    if bool(torch.isnan(value.sum())):
        value = torch.where(value.isnan(), 0.0, value)
    return value if value.dtype == dtype else value.to(dtype)


def _interval(own: Ints, delta: torch.Tensor, dtype: torch.dtype) -> tuple[Ints, Ints]:
    """Return the first and the last number, by their order, that delta takes to the pattern `own`."""
    size = torch.empty(0, dtype=dtype).element_size()
    order = _order(own, size)
    limit = (1 << (8 * size - 1)) - 1
    here, before, after = (_number(np.clip(order + step, -limit - 1, limit), size, dtype) for step in (0, -1, 1))
    low = (before + here) * 0.5 - delta
    high = (here + after) * 0.5 - delta
    is_sound = (torch.isfinite(low) & torch.isfinite(high)).numpy()
    low, high = torch.nan_to_num(low, 0.0, 0.0, 0.0), torch.nan_to_num(high, 0.0, 0.0, 0.0)
    first, last = _nearest(low.clone(), dtype).clone(), _nearest(high.clone(), dtype)
    first_at = _order(patterns(first).astype(np.int64), size) + (first.double() < low).numpy()
    last_at = _order(patterns(last).astype(np.int64), size) - (last.double() > high).numpy()
    return first_at, np.where(is_sound, last_at, first_at - 1)


def _order(pattern: Ints, size: int) -> Ints:
    """Return int64 patterns (sign extended) as integers that are ordered as the numbers are; -0 is just below 0.

    It is its own inverse.
    """
    return np.where(pattern < 0, pattern ^ ((1 << (8 * size - 1)) - 1), pattern)


def _number(order: Ints, size: int, dtype: torch.dtype) -> torch.Tensor:
    found = _order(order, size).astype(_SIGNED[size])
    return torch.from_numpy(found).view(dtype).double()


def _on_grid(merged: torch.Tensor, delta: torch.Tensor) -> Ints:
    limits = torch.iinfo(merged.dtype)
    steps = torch.floor(delta.reshape(-1) + 0.5)
    value = (merged.reshape(-1).double() - steps).nan_to_num(0.0).clamp_(limits.min, limits.max)
    return patterns(value.to(merged.dtype))
