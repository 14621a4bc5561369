"""Which bytes of a file have been written."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

__all__ = ["Ranges"]


class Ranges:
    """A set of byte offsets, kept as ranges that do not touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int) -> bool:
        """Add start..stop; return whether any of it was there before."""
        if start >= stop:
            return False
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        met = range(first, last)
        overlaps = any(self._starts[i] < stop and start < self._stops[i] for i in met)
        if met:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]
        return overlaps

    def reach(self, start: int) -> int:
        """How far it is written without a hole from `start` on."""
        place = bisect_right(self._starts, start) - 1
        return max(start, self._stops[place]) if place >= 0 else start

    def hole(self, size: int) -> tuple[int, int] | None:
        """The first range below `size` that is not written, or None."""
        start = self.reach(0)
        if start >= size:
            return None
        after = next((s for s in self._starts if s > start), size)
        return start, min(after, size)
