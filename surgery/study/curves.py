"""Mean validation curves over seeds, against steps, work and seconds: what a plot of losses shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surgery.study.record import CellRecord
from surgery.study.statistics import across_seeds
from surgery.study.summary import Row, Summary

__all__ = ["FEW_SEEDS", "CurveMean", "mean_curves", "step_seconds"]

FEW_SEEDS = 5
"""Below this a band is the range over seeds: an interval of three numbers would be wider than the plot."""


@dataclass(frozen=True, slots=True)
class CurveMean:
    """One point of one arm's curve.

    Attributes:
        arm: which.
        step: optimizer steps done.
        seeds: over how many runs.
        validation_loss_nats: the mean over seeds.
        low, high: the range over seeds; from `FEW_SEEDS` seeds on, the 95 % interval of the mean.
        flops: work until then: floating-point operations of the first batch, times steps; None where not counted.
        seconds: time until then: the median step, times steps (CPU time where `Summary.clock` is `cpu`); None likewise.
    """

    arm: str
    step: int
    seeds: int
    validation_loss_nats: float
    low: float
    high: float
    flops: float | None
    seconds: float | None


def mean_curves(summary: Summary, records: Sequence[CellRecord]) -> tuple[CurveMean, ...]:
    """Return every arm's points at the steps that all of its final runs measured, in the order of the summary."""
    return tuple(point for row in summary.rows for point in _points(summary, row, records))


def step_seconds(summary: Summary, row: Row) -> float | None:
    """Return the seconds of one step that compare arms on this machine."""
    return row.step_cpu if summary.clock == "cpu" else row.step


def _points(summary: Summary, row: Row, records: Sequence[CellRecord]) -> list[CurveMean]:
    runs = [
        {point["step"]: point["validation_loss"] for point in record["curve"] if point["validation_loss"] is not None}
        for record in records
        if record["arm"] == row.arm and record["phase"] == "final" and record["curve"]
    ]
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    if len(steps) < 2:
        return []
    work = None if row.cost is None else row.cost["forward"] + row.cost["backward"]
    seconds = step_seconds(summary, row)
    found = []
    for step in steps:
        values = [run[step] for run in runs]
        interval = across_seeds(values).interval if len(values) >= FEW_SEEDS else None
        found.append(
            CurveMean(
                row.arm,
                step,
                len(values),
                float(np.mean(values)),
                interval.low if interval else min(values),
                interval.high if interval else max(values),
                None if work is None else float(work) * step,
                None if seconds is None else seconds * step,
            )
        )
    return found
