"""Learning and forgetting on the way from the base to the tuned weights, W0 + t (W - W0): means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery.study.forgetting.arms import ArmForgetting, Point
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
        forgotten, forgotten_low, forgotten_high: how much worse the probe is than with the base, in its unit.
        learned, learned_low, learned_high: the primary metric on validation examples.
    """

    arm: str
    t: float
    seeds: int
    forgotten: float
    forgotten_low: float | None
    forgotten_high: float | None
    learned: float
    learned_low: float | None
    learned_high: float | None


def forgetting_paths(summary: Summary) -> tuple[PathMean, ...]:
    """Return the points of every arm at the shares t that each of its seeds has, in the order of the summary."""
    found = summary.forgotten
    return tuple(point for arm in found.arms for point in _points(arm)) if found is not None else ()


def _points(arm: ArmForgetting) -> list[PathMean]:
    by_share: dict[float, list[Point]] = {}
    for point in arm.points:
        if point.forgotten is not None and point.metric is not None:
            by_share.setdefault(point.t, []).append(point)
    seeds = len({point.seed for point in arm.points})
    return [_mean(arm.arm, t, points) for t, points in sorted(by_share.items()) if len(points) == seeds]


def _mean(arm: str, t: float, points: Sequence[Point]) -> PathMean:
    forgotten = across_seeds([point.forgotten for point in points if point.forgotten is not None])
    learned = across_seeds([point.metric for point in points if point.metric is not None])
    return PathMean(
        arm, t, len(points), forgotten.mean, *_ends(forgotten.interval), learned.mean, *_ends(learned.interval)
    )


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (interval.low, interval.high) if interval else (None, None)
