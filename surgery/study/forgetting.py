"""Learning and forgetting on the way from the base to the tuned weights, W0 + t dW, where a study measured it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery.study.record import CellRecord
from surgery.study.statistics import Interval, across_seeds
from surgery.study.summary import Summary

__all__ = ["PathMean", "forgetting_paths"]


@dataclass(frozen=True, slots=True)
class PathMean:
    """One point of one arm's way: means over seeds, and their 95 % intervals.

    Attributes:
        arm: which.
        t: share of the change that the weights hold: 0 is the base, 1 the tuned model.
        seeds: over how many runs.
        known_rise_nats, known_low, known_high: rise of the loss on text that the base knows.
        test, test_low, test_high: the primary metric.
    """

    arm: str
    t: float
    seeds: int
    known_rise_nats: float
    known_low: float | None
    known_high: float | None
    test: float
    test_low: float | None
    test_high: float | None


def forgetting_paths(summary: Summary, records: Sequence[CellRecord]) -> tuple[PathMean, ...]:
    """Return the points of every arm whose every final run measured them, in the order of the summary.

    A record tells of them under `forgetting.path`, one `PathPoint` for each t.
    """
    return tuple(point for row in summary.rows for point in _points(row.arm, records))


def _points(arm: str, records: Sequence[CellRecord]) -> list[PathMean]:
    runs = []
    for record in records:
        if record["arm"] == arm and record["phase"] == "final":
            lost = record["forgetting"]
            before = lost["before"] if lost else None
            runs.append(
                {
                    point["t"]: (point["loss"] - before, point["metric"])
                    for point in (lost.get("path", ()) if lost else ())
                    if before is not None and point["loss"] is not None and point["metric"] is not None
                }
            )
    shares = sorted(set.intersection(*map(set, runs))) if runs else []
    return [_mean(arm, t, [run[t] for run in runs]) for t in shares]


def _mean(arm: str, t: float, values: Sequence[tuple[float, float]]) -> PathMean:
    known, test = (across_seeds([value[which] for value in values]) for which in (0, 1))
    return PathMean(arm, t, len(values), known.mean, *_ends(known.interval), test.mean, *_ends(test.interval))


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (interval.low, interval.high) if interval else (None, None)
