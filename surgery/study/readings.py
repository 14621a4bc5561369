"""Losses at equal tokens, work and seconds, read from the validation curves of the runs that there are anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from surgery.study.record import CellRecord, CurvePoint
from surgery.study.spec import Axis, StudySpec

__all__ = ["COARSE", "Reading", "readings"]

COARSE = 0.25
"""A reading between two points that are farther apart than this share of the run says little."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The validation loss of one arm after as much of `axis` as every arm had.

    Attributes:
        arm: which.
        axis: `steps`, `tokens`, `flops` or `seconds`.
        amount: how much of it: what the arm that had least of it had in all.
        step: after how many steps the arm had that much, the mean over its seeds.
        before, after: the points of the curve between which it is read, on the first seed; equal where it is a point.
        coarse: whether they lie so far apart that the reading is a guess.
        unfinished: whether the arm's learning rate still had some way to go: a run of just that length may end lower.
        loss: validation loss in nats, the mean over seeds; None where a run has none there.
        metric: the task's metric there, if it was recorded.
    """

    arm: str
    axis: Axis
    amount: float
    step: float
    before: int
    after: int
    coarse: bool
    unfinished: bool
    loss: float | None
    metric: float | None = None


def readings(study: StudySpec, final: Sequence[CellRecord], seconds: Mapping[str, float | None]) -> tuple[Reading, ...]:
    """Return every arm's loss at the same amount of each axis of which every arm's is known.

    Between two points of a curve the loss is taken to be a straight line. FLOPs of a step are those that were counted
    on the first batch.

    Args:
        study: what was to be run.
        final: records of the final runs.
        seconds: arm -> seconds of one step.
    """
    by_arm = {arm: [record for record in final if record["arm"] == arm and record["curve"]] for arm in study.arms}
    if not all(by_arm.values()):
        return ()
    found: list[Reading] = []
    axes: tuple[Axis, ...] = ("steps", "tokens", "flops", "seconds")
    for axis in axes:
        spent = {arm: [_spent(record, axis, seconds.get(arm)) for record in own] for arm, own in by_arm.items()}
        ends = [run[-1] for own in spent.values() for run in own if run is not None]
        if len(ends) < sum(map(len, by_arm.values())) or not min(ends) > 0:
            continue
        found += [_reading(arm, axis, min(ends), own, spent[arm]) for arm, own in by_arm.items()]
    return tuple(found)


def _spent(record: CellRecord, axis: Axis, seconds: float | None) -> list[float] | None:
    """Return how much of `axis` had been spent at each point of the curve; None where that is not known."""
    steps = [float(point["step"]) for point in record["curve"]]
    if axis == "tokens":
        whole = record["budget"]["tokens"] / max(record["budget"]["updates"], 1)
        return [float(point.get("tokens", point["step"] * whole)) for point in record["curve"]]
    if axis == "flops":
        cost = record.get("cost")
        return None if cost is None else [step * (cost["forward"] + cost["backward"]) for step in steps]
    if axis == "seconds":
        return None if not seconds else [step * seconds for step in steps]
    return steps


def _reading(
    arm: str, axis: Axis, amount: float, own: Sequence[CellRecord], spent: Sequence[list[float] | None]
) -> Reading:
    steps, losses, metrics = [], [], []
    for record, amounts in zip(own, spent, strict=True):
        assert amounts is not None
        points = record["curve"]
        steps.append(float(np.interp(amount, amounts, [point["step"] for point in points])))
        losses.append(_between(amount, amounts, [point["validation_loss"] for point in points]))
        metrics.append(_between(amount, amounts, [point.get("validation_metric") for point in points]))
    first, amounts = own[0]["curve"], spent[0]
    assert amounts is not None
    before, after = _neighbours(amount, amounts, first)
    last = first[-1]["step"]
    return Reading(
        arm,
        axis,
        amount,
        step=float(np.mean(steps)),
        before=before,
        after=after,
        coarse=after - before > COARSE * last,
        unfinished=steps[0] < last - 0.5,
        loss=_mean(losses),
        metric=_mean(metrics),
    )


def _between(amount: float, amounts: list[float], values: Sequence[float | None]) -> float | None:
    """Return the value at `amount`; None where a point beside it has none."""
    place = int(np.searchsorted(amounts, amount * (1 - 1e-9)))
    place = min(place, len(values) - 1)
    right = values[place]
    if np.isclose(amounts[place], amount, rtol=1e-9) or place == 0:
        return right
    left = values[place - 1]
    if left is None or right is None:
        return None
    share = (amount - amounts[place - 1]) / (amounts[place] - amounts[place - 1])
    return left + share * (right - left)


def _neighbours(amount: float, amounts: list[float], points: Sequence[CurvePoint]) -> tuple[int, int]:
    place = min(int(np.searchsorted(amounts, amount * (1 - 1e-9))), len(points) - 1)
    step = points[place]["step"]
    return (step, step) if np.isclose(amounts[place], amount, rtol=1e-9) else (points[max(place - 1, 0)]["step"], step)


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return float(np.mean(finite)) if finite and len(finite) == len(values) else None
