"""Further metrics, each with its intervals. No verdict rests on them: the one that decides was declared before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery.errors import StateError, nearest
from surgery.study.measure import Score, measure
from surgery.study.record import CellRecord
from surgery.study.spec import StudySpec
from surgery.study.statistics import Estimate, Interval, across_seeds, paired

__all__ = ["Secondary", "secondary"]

_RESAMPLES = 400  # each draw scores every run anew where a metric is no mean; enough for 4 % of a width


@dataclass(frozen=True, slots=True)
class Secondary:
    """One further metric of one arm.

    Attributes:
        metric, arm: which.
        estimate: over seeds.
        difference, interval: arm minus reference with its 95 % interval; None for the reference itself.
    """

    metric: str
    arm: str
    estimate: Estimate
    difference: float | None = None
    interval: Interval | None = None


def secondary(study: StudySpec, final: Sequence[CellRecord], score: Score | None) -> tuple[Secondary, ...]:
    """Return every metric that the study lists, for every arm whose runs all have it.

    Raises:
        StateError: a metric that no run has.
    """
    found = []
    for name in study.metrics:
        known = sorted({key for record in final for key in (record["test"] or {})})
        if name not in known:
            raise StateError(f"no run has the metric {name!r}", "metrics", nearest(name, known))
        measured = measure(final, name, study.seeds, _RESAMPLES, score)
        for arm in measured.arms:
            estimate = across_seeds([float(value) for value in measured.points[arm]])
            if arm == study.reference or study.reference not in measured.points:
                found.append(Secondary(name, arm, estimate))
                continue
            point = measured.points[arm] - measured.points[study.reference]
            draws = measured.draws[arm] - measured.draws[study.reference]
            pair = paired([float(value) for value in point], draws, measured.items, 0)
            found.append(Secondary(name, arm, estimate, pair.difference, pair.interval(0.95)))
    return tuple(found)
