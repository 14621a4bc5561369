"""What each arm forgot: at the end, at equal learning, and at an equal size of the change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from surgery.study.forgetting.along import ProbeInfo
from surgery.study.record import CellRecord, Lost
from surgery.study.statistics import Interval

__all__ = ["ArmForgetting", "Difference", "Forgotten", "Matched", "Point", "rise", "unit_of_probe", "worse"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference over seeds and the probe's items, with its 95 % interval; positive: more was forgotten."""

    difference: float
    interval: Interval
    seeds: int
    items: int


@dataclass(frozen=True, slots=True)
class Point:
    """One run at W0 + t (W - W0).

    Attributes:
        seed, t: which.
        metric, loss: of the validation examples.
        score, forgotten: of the probe; how much worse than the base's.
        change, relative: |t (W - W0)|, and the same over |W0|.
    """

    seed: int
    t: float
    metric: float | None
    loss: float | None
    score: float | None
    forgotten: float | None
    change: float | None
    relative: float | None


@dataclass(frozen=True, slots=True)
class Matched:
    """An arm where it has learned as much (or changed as much) as every other arm can; means over seeds.

    Attributes:
        level: the metric (or relative change) that all arms share there; each seed has its own.
        t: how far along the arm it is.
        relative: its |t (W - W0)| / |W0| there.
        forgotten: what is forgotten there.
        against: the same minus the reference's; None for the reference.
    """

    level: float
    t: float
    relative: float
    forgotten: Difference
    against: Difference | None


@dataclass(frozen=True, slots=True)
class ArmForgetting:
    """What one arm forgot.

    Attributes:
        arm, label: which.
        before, after: the probe's score, means over seeds.
        first_before, first_after: share of queries that find their passage first, for retrieval.
        forgotten, against: at the end of training, and the same minus the reference's.
        moved_up: whether the probe got better by more than its interval: then it measures no forgetting.
        matched: at the largest metric that every arm reaches.
        pair: at the largest metric that this arm and the reference reach, which a third arm cannot lower.
        equal_change: at the largest |W - W0| that every arm reaches.
        points: of every seed, t ascending.
    """

    arm: str
    label: str
    before: float
    after: float
    first_before: float | None
    first_after: float | None
    forgotten: Difference
    against: Difference | None
    moved_up: bool
    matched: Matched | None
    pair: Matched | None
    equal_change: Matched | None
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Forgetting in a whole study.

    Attributes:
        probe: what measured.
        items: how many items it has.
        metric, greater_is_better: of learning.
        shared_texts, texts, shared_runs, runs: of the probe, how much the task's own rows hold.
        reference: the arm that others are compared with.
        arms: reference first, then the arms, then the frozen row.
        left_out: label -> why an arm is not matched.
    """

    probe: ProbeInfo
    items: int
    metric: str
    greater_is_better: bool
    shared_texts: int
    texts: int
    shared_runs: int
    runs: int
    reference: str
    arms: tuple[ArmForgetting, ...]
    left_out: Mapping[str, str]

    def arm(self, name: str) -> ArmForgetting | None:
        """Return what `name` forgot, or None where it was not measured."""
        return next((one for one in self.arms if one.arm == name), None)

    def is_trivial(self, level: float, majority: float | None) -> bool:
        """Whether the metric `level` is no better than that of always answering the most frequent class."""
        if majority is None:
            return False
        return level <= majority if self.greater_is_better else level >= majority


def rise(lost: Lost) -> float | None:
    """Return how much worse the probe is after than before, in the unit of its score."""
    before, after = lost["before"], lost["after"]
    return None if before is None or after is None else worse(lost) * (after - before)


def worse(lost: Lost) -> float:
    """Return 1 where a larger score is a worse one, as a loss is, else -1."""
    return -1.0 if "probe" in lost and lost["probe"]["greater_is_better"] else 1.0


def unit_of_probe(records: Iterable[CellRecord]) -> str:
    """Return the unit of the probe's score: nats, or MRR."""
    probes = (lost["probe"] for record in records if (lost := record["forgetting"]) and "probe" in lost)
    return next((probe["unit"] for probe in probes), "nats")
