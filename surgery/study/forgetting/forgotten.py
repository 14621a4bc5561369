"""From the records of a study to what each arm forgot, paired by seed and by item of the probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from surgery.study.forgetting.along import AlongPoint
from surgery.study.forgetting.arms import ArmForgetting, Difference, Forgotten, Matched, Point, worse
from surgery.study.forgetting.matched import Place, common_level, reached
from surgery.study.record import CellRecord, Lost
from surgery.study.resample import Floats, resampled_ratios
from surgery.study.spec import FROZEN, StudySpec
from surgery.study.statistics import paired

__all__ = ["forgotten"]

END, LEARNED, CHANGED, PAIR = "end", "learned", "changed", "pair "
_FEWEST_POINTS = 2
_FEWEST_ARMS = 2


def forgotten(study: StudySpec, final: Sequence[CellRecord], untrained: Collection[str]) -> Forgotten | None:
    """Return what the arms of a finished study forgot; None where records do not hold it for every seed.

    Args:
        study: what was to be run.
        final: records of the final phase.
        untrained: arms that learned nothing or diverged: nothing can be matched with those.
    """
    runs = _runs(study, final)
    if study.reference not in runs:
        return None
    first, metric = runs[study.reference][0].lost, final[0]["metric"]
    if any(run.lost["weights"] != first["weights"] for own in runs.values() for run in own):
        return None  # other items: an earlier folder whose rows have changed since
    left_out = {arm: why for arm in study.arms if (why := _unmatched(runs.get(arm, ()), arm in untrained))}
    able = {arm: own for arm, own in runs.items() if arm in study.arms and arm not in left_out}
    sign = 1.0 if metric["greater_is_better"] else -1.0

    def learned(where: str, arms: Mapping[str, Sequence[_Run]]) -> _Shared:
        return _shared(where, arms, lambda point: sign * _number(point["metric"]), metric["greater_is_better"])

    levels = {
        LEARNED: learned(LEARNED, able),
        CHANGED: _shared(CHANGED, able, lambda point: _number(point["change"]), True),
    }
    for arm in able:
        two = {one: able[one] for one in (study.reference, arm) if one in able}
        levels[f"{PAIR}{arm}"] = learned(f"{PAIR}{arm}", two)
    drawn = _Drawn(first, study.resamples)
    for arm, own in runs.items():
        drawn.put(arm, END, [(run.base, run.curve[-1]) for run in own])
        for where, level in levels.items():
            if arm in level.spots:
                pairs = zip(own, level.spots[arm], strict=True)
                drawn.put(arm, where, [(run.base, spot.place.of(run.curve)) for run, spot in pairs])
    shared = first["shared"]
    return Forgotten(
        probe=first["probe"],
        items=len(first["weights"]),
        metric=metric["name"],
        greater_is_better=metric["greater_is_better"],
        shared_texts=shared["shared_texts"],
        texts=shared["texts"],
        shared_runs=shared["shared_runs"],
        runs=shared["runs"],
        reference=study.reference,
        arms=tuple(_arm(study, arm, own, drawn, levels) for arm, own in runs.items()),
        left_out={study.label(arm): why for arm, why in left_out.items()},
    )


@dataclass(frozen=True)
class _Run:
    """One run: the probe's items on the base, and at each point."""

    seed: int
    lost: Lost
    base: Floats
    curve: tuple[Floats, ...]

    @property
    def norm(self) -> float:
        return self.lost["base_norm"] or 1.0


@dataclass(frozen=True)
class _Spot:
    """Where one run meets the level that its seed's runs share."""

    place: Place
    level: float


def _runs(study: StudySpec, final: Sequence[CellRecord]) -> dict[str, list[_Run]]:
    """Return arm -> its run on every seed, for arms whose every run has a finite score before and after."""
    found: dict[str, list[_Run]] = {}
    others = [arm for arm in study.arms if arm != study.reference]
    for arm in (study.reference, *others, FROZEN):
        own = {record["seed"]: record["forgetting"] for record in final if record["arm"] == arm}
        runs = [_run(seed, lost) for seed in study.seeds if (lost := own.get(seed)) and lost.get("points")]
        ends = [values for run in runs for values in (run.base, run.curve[-1])]
        if len(runs) == len(study.seeds) and all(np.isfinite(values).all() for values in ends):
            found[arm] = runs
    return found


def _run(seed: int, lost: Lost) -> _Run:
    return _Run(seed, lost, _floats(lost["values"]), tuple(_floats(point["values"]) for point in lost["points"]))


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array([_number(value) for value in values], dtype=np.float64)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _unmatched(own: Sequence[_Run], is_untrained: bool) -> str:
    """Return why an arm cannot be matched; empty if it can."""
    if not own:
        return "a run has no finite score, or an earlier version made it"
    if is_untrained:
        return "it did not train"
    points = [point for run in own for point in run.lost["points"]]
    if any(len(run.curve) < _FEWEST_POINTS for run in own):
        return "only its end was measured"
    told = [point[key] for point in points for key in ("metric", "score", "change")]
    return "a point of it has no finite value" if None in told else ""


@dataclass(frozen=True)
class _Shared:
    """The largest value that all runs of a seed reach, and arm -> where each of its runs does; none with one arm."""

    where: str
    spots: Mapping[str, Sequence[_Spot]]
    greater_is_better: bool


def _shared(
    where: str, able: Mapping[str, Sequence[_Run]], value: Callable[[AlongPoint], float], greater_is_better: bool
) -> _Shared:
    found: dict[str, list[_Spot]] = {}
    seeds = len(next(iter(able.values()))) if len(able) >= _FEWEST_ARMS else 0
    for index in range(seeds):
        curves = {arm: [value(point) for point in own[index].lost["points"]] for arm, own in able.items()}
        level = common_level(curves)
        for arm, curve in curves.items():
            found.setdefault(arm, []).append(_Spot(reached(curve, level), level))
    return _Shared(where, found, greater_is_better)


class _Drawn:
    """Scores of runs and the same on resampled items; all of them share their draws, so differences stay paired."""

    def __init__(self, lost: Lost, resamples: int) -> None:
        self._weights = np.asarray(lost["weights"], dtype=np.float64)
        self._sign = worse(lost)
        self._resamples = resamples
        self._rows: dict[tuple[str, str], list[tuple[Floats, Floats]]] = {}

    def put(self, arm: str, where: str, pairs: list[tuple[Floats, Floats]]) -> None:
        """Take up (items of the base, items there) of each seed."""
        self._rows[arm, where] = pairs

    @cached_property
    def _found(self) -> dict[tuple[str, str], tuple[Floats, Floats]]:
        """(arm, where) -> what is forgotten there: (seeds,), and on resampled items: (resamples, seeds)."""
        flat = [self._sign * (there - base) for pairs in self._rows.values() for base, there in pairs]
        values = np.array(flat)
        points = values.sum(axis=1) / self._weights.sum()
        draws = resampled_ratios(values, self._weights, self._resamples, 0)
        found, start = {}, 0
        for key, pairs in self._rows.items():
            end = start + len(pairs)
            found[key] = (points[start:end], draws[:, start:end])
            start = end
        return found

    def difference(self, arm: str, where: str, reference: str | None = None) -> Difference:
        """Return what is forgotten there, or that minus what the reference forgets."""
        points, draws = self._found[arm, where]
        if reference is not None:
            points, draws = points - self._found[reference, where][0], draws - self._found[reference, where][1]
        pair = paired([float(point) for point in points], draws, len(self._weights), 0)
        return Difference(pair.difference, pair.interval(0.95), pair.seeds, pair.items)


def _arm(
    study: StudySpec, arm: str, own: Sequence[_Run], drawn: _Drawn, levels: Mapping[str, _Shared]
) -> ArmForgetting:
    end = drawn.difference(arm, END)
    ranks = own[0].lost["probe"]["kind"] == "retrieval"
    return ArmForgetting(
        arm=arm,
        label=study.label(arm),
        before=_mean(_number(run.lost["before"]) for run in own),
        after=_mean(_number(run.lost["after"]) for run in own),
        first_before=_mean(float((run.base == 1).mean()) for run in own) if ranks else None,
        first_after=_mean(float((run.curve[-1] == 1).mean()) for run in own) if ranks else None,
        forgotten=end,
        against=None if arm == study.reference else drawn.difference(arm, END, study.reference),
        moved_up=end.interval.high < 0,
        matched=_matched(arm, own, levels[LEARNED], drawn, study.reference),
        pair=_matched(arm, own, levels.get(f"{PAIR}{arm}"), drawn, study.reference),
        equal_change=_matched(arm, own, levels[CHANGED], drawn, study.reference),
        points=tuple(_point(run, point) for run in own for point in run.lost["points"]),
    )


def _matched(arm: str, own: Sequence[_Run], shared: _Shared | None, drawn: _Drawn, reference: str) -> Matched | None:
    """Return the arm where its runs are at the shared level; None where it has no such place."""
    if shared is None or arm not in shared.spots:
        return None
    pairs = list(zip(own, shared.spots[arm], strict=True))
    levels, shares, changes = [], [], []
    for run, spot in pairs:
        points = run.lost["points"]
        levels.append(spot.level / run.norm if shared.where == CHANGED else spot.level)
        shares.append(float(spot.place.of([point["t"] for point in points])))
        changes.append(float(spot.place.of([_number(point["change"]) for point in points])) / run.norm)
    is_compared = arm != reference and reference in shared.spots
    return Matched(
        level=_mean(levels) if shared.greater_is_better else -_mean(levels),
        t=_mean(shares),
        relative=_mean(changes),
        forgotten=drawn.difference(arm, shared.where),
        against=drawn.difference(arm, shared.where, reference) if is_compared else None,
    )


def _point(run: _Run, point: AlongPoint) -> Point:
    before, after, change = run.lost["before"], point["score"], point["change"]
    norm = run.lost["base_norm"]
    return Point(
        seed=run.seed,
        t=point["t"],
        metric=point["metric"],
        loss=point["loss"],
        score=after,
        forgotten=None if before is None or after is None else worse(run.lost) * (after - before),
        change=change,
        relative=change / norm if change is not None and norm else None,
    )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
