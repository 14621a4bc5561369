"""The primary metric of every arm and seed, and the same on resampled test items."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from surgery.errors import StateError
from surgery.study.record import CellRecord
from surgery.study.resample import Floats, Items, resampled_ratios, resampled_scores
from surgery.study.spec import FROZEN, MAJORITY

__all__ = ["Measure", "Score", "measure", "not_numbers"]

Score: TypeAlias = Callable[[Items], Mapping[str, float]]
"""A task's metrics from per-item arrays."""

_SAME = 1e-6  # a plugin may have scored arrays of single precision; what a file holds is read as double
_CORPUS_RESAMPLES = 2000  # a metric that is no mean is computed anew for every draw, run by run


@dataclass(frozen=True)
class Measure:
    """The primary metric, ready for pairing.

    Attributes:
        items: number of test items n.
        points: arm -> value for each seed, (seeds,).
        draws: arm -> value on resampled items, (resamples, seeds); all arms share their draws.
        right: arm -> which items were answered right, (seeds, items); None where items are more than right or wrong.
    """

    items: int
    points: Mapping[str, Floats]
    draws: Mapping[str, Floats]
    right: Mapping[str, NDArray[np.bool_]] | None

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms whose every run has a finite metric."""
        return tuple(self.points)


def measure(
    final: Sequence[CellRecord], metric: str, seeds: Sequence[int], resamples: int, score: Score | None
) -> Measure:
    """Return the primary metric of every arm on every seed and on resampled items.

    Raises:
        StateError: records that do not speak of the same test items, or whose score is not that of their items.
    """
    runs = _runs(final, metric, seeds)
    arms = list(runs)
    flat = [run.items for arm in arms for run in runs[arm]]
    if not flat:
        return Measure(0, {}, {}, None)
    count = len(flat[0]["loss"])
    if any(len(items["loss"]) != count for items in flat):
        raise StateError(
            "the runs were scored on different numbers of test items", hint="begin again in an empty folder"
        )
    reported = np.array([run.reported for arm in arms for run in runs[arm]])
    points, draws = _values(flat, reported, metric, resamples, score)
    _refuse_contradictions([f"{arm}, seed {seed}" for arm in arms for seed in seeds], metric, points, reported)
    shape = (len(arms), len(seeds))
    by_arm = points.reshape(shape)
    drawn = draws.reshape(len(draws), *shape)
    right, hits = None, _hits(flat, metric)
    if hits is not None:
        by_run = hits.reshape(*shape, count)
        right = {arm: by_run[index] for index, arm in enumerate(arms)}
    return Measure(
        count,
        {arm: by_arm[index] for index, arm in enumerate(arms)},
        {arm: drawn[:, index] for index, arm in enumerate(arms)},
        right,
    )


def not_numbers(final: Sequence[CellRecord], metric: str) -> dict[str, str]:
    """Return arm -> in which runs `metric` is not a number: NaN or infinite, says the task's score."""
    found: dict[str, list[int]] = {}
    for record in final:
        # A run that was scored by another metric has none of this name: the audit tells that.
        if record["test"] is not None and record["test"].get(metric, math.nan) is None:
            found.setdefault(record["arm"], []).append(record["seed"])
    return {
        arm: f"{metric} is not a number in arm {arm}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        for arm, seeds in found.items()
    }


@dataclass(frozen=True, slots=True)
class _Run:
    """Per-item arrays of one run, and the metric that the task itself made of them."""

    items: Items
    reported: float


def _runs(final: Sequence[CellRecord], metric: str, seeds: Sequence[int]) -> dict[str, list[_Run]]:
    """Return arm -> runs in the order of `seeds`, for arms whose every run has a finite metric."""
    found: dict[str, dict[int, CellRecord]] = {}
    for record in final:
        found.setdefault(record["arm"], {})[record["seed"]] = record
    runs: dict[str, list[_Run]] = {}
    for arm, by_seed in found.items():
        # The untouched base was evaluated once and stands for every seed.
        once = next(iter(by_seed.values()))
        chosen = [once] * len(seeds) if arm == FROZEN and not once["trains"] else [by_seed[seed] for seed in seeds]
        reported = [(record["test"] or {}).get(metric) for record in chosen]
        finite = [value for value in reported if value is not None]
        if len(finite) == len(chosen):
            runs[arm] = [_Run(_arrays(record), value) for record, value in zip(chosen, finite, strict=True)]
    constant = next((record for record in final if record["majority"]), None)
    if constant is not None and constant["majority"] is not None:
        value = constant["majority"]["test"].get(metric)
        if value is not None:
            runs[MAJORITY] = [_Run(_constant(constant), value)] * len(seeds)
    return runs


def _arrays(record: CellRecord) -> Items:
    items = record["items"] or {}
    return {
        name: np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        for name, values in items.items()
    }


def _constant(record: CellRecord) -> Items:
    majority, items = record["majority"], _arrays(record)
    assert majority is not None
    # A class that training never showed has share 0; its loss is infinite and enters no accuracy.
    shares = np.maximum(np.array(majority["shares"], dtype=np.float64), 1e-12)
    labels = items["label"].astype(np.int64)
    loss = -np.log(shares[labels])
    return {**items, "prediction": np.full(len(labels), float(majority["label"])), "loss": loss}


def _values(
    flat: Sequence[Items], reported: Floats, metric: str, resamples: int, score: Score | None
) -> tuple[Floats, Floats]:
    """Return the metric of each run, (runs,), and on resampled items, (resamples, runs)."""
    parts = _ratio(flat, metric)
    if parts is not None:
        values, units = parts
        points = values.sum(axis=1) / units.sum()
        # A plugin may mean something else by the same name: then its own score is computed anew on every draw.
        if np.allclose(points, reported, rtol=_SAME, atol=_SAME):
            return points, resampled_ratios(values, units, resamples, 0)
    if score is None:
        raise StateError(
            f"the metric {metric!r} is no mean over items, and the task that computes it is not at hand",
            hint="run surgery compare again where the task's plugin is installed",
        )
    alone: Callable[[Items], float] = lambda items: float(score(items)[metric])  # noqa: E731
    points = np.array([alone(items) for items in flat])
    return points, resampled_scores(flat, alone, min(resamples, _CORPUS_RESAMPLES), 0)


def _refuse_contradictions(runs: Sequence[str], metric: str, points: Floats, reported: Floats) -> None:
    """Refuse a score that the run's own items do not give: one of the two was edited, or is of another version."""
    for run, point, told in zip(runs, points, reported, strict=True):
        if not np.isclose(point, told, rtol=_SAME, atol=_SAME):
            raise StateError(
                f"{run}: the record says {metric} {told:.6g}, and its test items give {point:.6g}",
                "results.jsonl",
                "restore the file, or delete the line of this run: it runs again",
            )


def _ratio(flat: Sequence[Items], metric: str) -> tuple[Floats, Floats] | None:
    """Return what each run earned on each item and what each item weighs, for metrics known to be their ratio."""
    if metric == "loss":
        losses = np.array([items["loss"] for items in flat], dtype=np.float64)
        return losses, np.asarray(flat[0]["units"], dtype=np.float64)
    if all(metric in items for items in flat):
        values = np.array([items[metric] for items in flat], dtype=np.float64)
        return values, np.ones(values.shape[1])
    if metric == "accuracy" and all("prediction" in items for items in flat):
        hits = np.array([items["prediction"] == items["label"] for items in flat], dtype=np.float64)
        return hits, np.ones(hits.shape[1])
    return None


def _hits(flat: Sequence[Items], metric: str) -> NDArray[np.bool_] | None:
    """Return which items each run got right, (runs, items); None where an item is more than right or wrong."""
    if all("prediction" in items and "label" in items for items in flat):
        return np.array([items["prediction"] == items["label"] for items in flat], dtype=np.bool_)
    if all(metric in items for items in flat):
        values = np.array([items[metric] for items in flat], dtype=np.float64)
        if np.isin(values, (0.0, 1.0)).all():
            return np.array(values == 1, dtype=np.bool_)
    return None
