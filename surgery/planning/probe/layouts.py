"""Which part of a fused weight a role has, as a rule that holds for models of every size."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from surgery.architecture import Slice
from surgery.architecture.counts import Count, count_of

__all__ = ["Seen", "layout"]


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows that a role has in one small model.

    Attributes:
        rows: the indices.
        width: number of rows of the whole weight.
        settings: the model's sizes by the names of its configuration.
    """

    rows: Collection[int]
    width: int
    settings: Mapping[str, Any]


_Cut: TypeAlias = tuple[tuple[Count, ...], int, Count, Count]
"""View, dimension, start and length of a slice."""


@dataclass(frozen=True, slots=True)
class _Runs:
    """Equally long runs at equal distances: `length` rows from `start` in every `stride`."""

    stride: int
    start: int
    length: int


def layout(path: str, seen: Sequence[Seen], names: Mapping[str, str], axis: int = 0) -> Slice | None:
    """Return the slice that has these rows in every model seen, or None.

    Args:
        path: as in `Slice`.
        seen: at least two models whose sizes differ.
        names: what counts of a layout are made of -> configuration name, or expression of such names: `heads`,
            `groups` (of keys and values), `head` (width of one head).
        axis: the axis of the weight that its outputs are on.
    """
    runs = [_runs(one) for one in seen]
    found = [run for run in runs if run is not None]
    if len(found) < len(runs):
        return None
    simple = next(chain(_shares(seen, found), _by_heads(seen, found, names)), None)
    if simple is not None:
        view, dim, from_, many = simple
        return Slice(path, view, dim, from_, many, axis)
    counts = tuple(_counts(names))
    start = _common(counts, [run.start for run in found], seen)
    length = _common(counts, [run.length for run in found], seen)
    stride = _common(counts, [run.stride for run in found], seen)
    if start is None or length is None:
        return None
    if all(run.stride == one.width for run, one in zip(found, seen, strict=True)):
        return Slice(path, (-1,), 0, start, length, axis)
    return None if stride is None else Slice(path, (-1, stride), 1, start, length, axis)


def _runs(seen: Seen) -> _Runs | None:
    """Return the runs that rows form, or None where they form none."""
    rows = sorted(seen.rows)
    if not rows:
        return None
    starts = [row for row in rows if row - 1 not in seen.rows]
    length = len(rows) // len(starts)
    stride = starts[1] - starts[0] if len(starts) > 1 else seen.width
    expected = [start + step for start in range(starts[0], seen.width, stride) for step in range(length)]
    fits = rows == expected and seen.width % stride == 0 and starts[0] + length <= stride
    return _Runs(stride, starts[0], length) if fits else None


def _shares(seen: Sequence[Seen], runs: Sequence[_Runs]) -> Iterator[_Cut]:
    """Yield layouts that need no size of a model: equal shares of the whole, or every so many-th row."""
    for parts in (2, 3, 4):
        for part in range(parts):
            if all(
                (run.stride, run.start, run.length) == (one.width, part * one.width // parts, one.width // parts)
                for one, run in zip(seen, runs, strict=True)
            ):
                yield (parts, -1), 0, part, 1
            if all((run.stride, run.start, run.length) == (parts, part, 1) for run in runs):
                yield (-1, parts), 1, part, 1


def _by_heads(seen: Sequence[Seen], runs: Sequence[_Runs], names: Mapping[str, str]) -> Iterator[_Cut]:
    """Yield layouts that repeat for each head, or for each group of heads: its parts stand side by side."""
    if "heads" not in names:
        return
    queries = f"{_term(names['heads'])} // {_term(names.get('groups', names['heads']))}"
    for repeats in (names["heads"], names.get("groups", names["heads"])):
        for parts in (2, 3, f"{queries} + 2"):
            view = (repeats, parts, -1)
            units = [
                one.width // max(1, count_of(repeats, one.settings, {}) * count_of(parts, one.settings, {}))
                for one in seen
            ]
            strides = [one.width // count_of(repeats, one.settings, {}) for one in seen]
            if strides != [run.stride for run in runs] or not all(units):
                continue
            if any(run.start % unit or run.length % unit for run, unit in zip(runs, units, strict=True)):
                continue
            places: tuple[Count, ...] = (0, 1, 2, queries, f"{queries} + 1")
            start = _common(places, [run.start // unit for run, unit in zip(runs, units, strict=True)], seen)
            length = _common(places[1:], [run.length // unit for run, unit in zip(runs, units, strict=True)], seen)
            if start is not None and length is not None:
                yield view, 1, start, length


def _counts(names: Mapping[str, str]) -> Iterator[Count]:
    """Yield counts that layouts are made of, simple ones first."""
    yield 0
    if "heads" not in names or "head" not in names:
        return
    heads, head = _term(names["heads"]), _term(names["head"])
    groups = _term(names.get("groups", names["heads"]))
    yield names["head"]
    for factor in (2, 3):
        yield f"{factor} * {head}"
    yield f"{heads} * {head}"
    for factor in (2, 3):
        yield f"{factor} * {heads} * {head}"
    if groups != heads:
        yield f"{groups} * {head}"
        yield f"{heads} // {groups} * {head}"
        for more in (1, 2):
            yield f"({heads} // {groups} + {more}) * {head}"
            yield f"({heads} + {more} * {groups}) * {head}"
        yield f"2 * {groups} * {head}"
    for more in (1, 2):  # one head of keys and values, whatever the configuration calls it
        yield f"({heads} + {more}) * {head}"
    for part in (1, 2, 3):  # CodeGen splits its heads over four devices
        yield f"{part} * ({heads} * {head} // 4)"


def _term(expression: str) -> str:
    return expression if expression.isidentifier() else f"({expression})"


def _common(counts: Sequence[Count], values: Sequence[int], seen: Sequence[Seen]) -> Count | None:
    """Return the first count that has these values in these models."""
    for count in counts:
        if all(count_of(count, one.settings, {}) == value for value, one in zip(values, seen, strict=True)):
            return count
    return None
