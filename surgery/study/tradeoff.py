"""What an arm achieves against what it takes: the points of Pareto plots, and which of them no other beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from surgery.study.curves import step_seconds
from surgery.study.record import CellRecord
from surgery.study.summary import Row, Summary

__all__ = ["AXES", "Tradeoff", "tradeoffs"]

AXES: Mapping[str, str] = {
    "parameters": "trainable parameters, head included",
    "checkpoint_bytes": "bytes of the adapter checkpoint",
    "seconds": "seconds of training",
}
"""What an arm takes -> what the axis is called."""


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """One arm on one axis.

    Attributes:
        axis: a key of `AXES`.
        arm: which.
        amount: what it takes: numbers, bytes, or seconds (the median step, times steps; CPU time where
            `Summary.clock` is `cpu`).
        test, low, high: the primary metric, the mean and its 95 % interval over seeds; None with one seed.
        on_front: whether no other arm of the axis is as good for as little.
    """

    axis: str
    arm: str
    amount: float
    test: float
    low: float | None
    high: float | None
    on_front: bool = False


def tradeoffs(summary: Summary, records: Sequence[CellRecord]) -> tuple[Tradeoff, ...]:
    """Return the points of every axis, cheapest first. Arms that train nothing are on none."""
    found: list[Tradeoff] = []
    for axis in AXES:
        points = [
            point
            for row in summary.rows
            if row.kind != "majority" and (point := _point(summary, row, axis, records)) is not None
        ]
        found += _fronted(points, 1 if summary.metric["greater_is_better"] else -1)
    return tuple(found)


def _point(summary: Summary, row: Row, axis: str, records: Sequence[CellRecord]) -> Tradeoff | None:
    amount = _amount(summary, row, axis, records)
    if row.test is None or not amount:
        return None
    interval = row.test.interval
    ends = (interval.low, interval.high) if interval else (None, None)
    return Tradeoff(axis, row.arm, amount, row.test.mean, *ends)


def _amount(summary: Summary, row: Row, axis: str, records: Sequence[CellRecord]) -> float | None:
    if axis == "parameters":
        return (row.adapter or 0) + (row.head or 0)
    if axis == "checkpoint_bytes":
        return row.checkpoint_bytes
    seconds = step_seconds(summary, row)
    updates = max((record["budget"]["updates"] for record in records if record["arm"] == row.arm), default=0)
    return None if seconds is None else seconds * updates


def _fronted(points: list[Tradeoff], sign: int) -> list[Tradeoff]:
    ordered = sorted(points, key=lambda point: (point.amount, -sign * point.test))
    best: float | None = None
    found = []
    for point in ordered:
        on_front = best is None or sign * point.test > sign * best
        best = point.test if on_front else best
        found.append(replace(point, on_front=on_front))
    return found
