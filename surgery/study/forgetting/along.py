"""What a run forgot: a probe before and after, and both learning and forgetting at W0 + t (W - W0)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from surgery.study.spec import Forgetting

if TYPE_CHECKING:
    from surgery.operation import Operation
    from surgery.study.cells import Cell
    from surgery.study.record import Lost
    from surgery.training import Session
    from surgery.training.overlap import Overlap
    from surgery.training.probes import Probe, Reading

__all__ = ["AlongPoint", "Known", "ProbeInfo", "Shared", "known_of"]


class ProbeInfo(TypedDict):
    """What measured: its kind, its score's name, unit and direction, what chance scores, and why it was taken."""

    kind: str
    score: str
    unit: str
    greater_is_better: bool
    chance: float | None
    why: str


class Shared(TypedDict):
    """Different texts and runs of words of the probe, and how many of them stand in the task's own rows."""

    texts: int
    shared_texts: int
    runs: int
    shared_runs: int


class AlongPoint(TypedDict):
    """The model at W0 + t (W - W0), a new head at its trained value; None where not measured or not finite.

    `metric` and `loss` are of validation examples, `score` and `values` (of each item) of the probe; `change` is
    |t (W - W0)|, the Frobenius norm over everything but a new head.
    """

    t: float
    metric: float | None
    loss: float | None
    score: float | None
    values: list[float | None]
    change: float | None


@dataclass(frozen=True)
class Known:
    """What the base knows, ready to be measured in any run of the study on this session's model.

    Attributes:
        wanted: the study's words.
        probe: measures.
        shared: how much of the probe the task's own rows hold.
        kept: parameters of a new head: no base has them, so they stay as they were trained.
        chosen: indices of the validation examples that say what is learned.
    """

    wanted: Forgetting
    probe: Probe
    shared: Overlap
    kept: frozenset[str]
    chosen: tuple[int, ...]

    def before(self, session: Session) -> Lost:
        """Measure the base; no operation is active."""
        probe, reading = self.probe, self.probe.measure(session)
        return {
            "before": _finite(reading.score),
            "after": None,
            "probe": ProbeInfo(
                kind=probe.kind,
                score=probe.score_name,
                unit=probe.unit,
                greater_is_better=probe.greater_is_better,
                chance=_finite(probe.chance),
                why=probe.why,
            ),
            "weights": [float(weight) for weight in reading.weights],
            "values": _values(reading),
            "shared": Shared(
                texts=self.shared.texts,
                shared_texts=self.shared.shared_texts,
                runs=self.shared.runs,
                shared_runs=self.shared.shared_runs,
            ),
            "base_norm": None,
            "points": [],
        }

    def after(
        self, lost: Lost, session: Session, operation: Operation, validation: Mapping[str, float | None], sound: bool
    ) -> None:
        """Write into `lost` what the trained operation has forgotten, and its points in the order of t.

        Args:
            lost: of `before`.
            session, operation: after training; nothing is merged.
            validation: metrics of the whole validation split as training left it.
            sound: whether the run converged; of one that did not, only the end is measured.
        """
        from surgery.operation.attach import alike_everywhere
        from surgery.operation.blend import change_norm

        reading = self.probe.measure(session)
        lost["after"] = _finite(reading.score)
        with alike_everywhere():  # sums end in other bits on other numbers of threads
            change, base = change_norm(operation, self.kept)
        lost["base_norm"] = _finite(base)
        points = []
        if sound and self.moves(session):
            points = [self._point(t, session, operation, change) for t in self.wanted.along if t < 1]
        metrics = validation if self._is_whole(session) or not self.wanted.along else self._learned(session)
        lost["points"] = [*points, _point(1.0, session, metrics, reading, change if sound else None)]

    def moves(self, session: Session) -> bool:
        """Whether the session's plan adapts anything but a new head."""
        return any(edit.site.name not in self.kept for edit in session.plan.edits)

    def note(self, session: Session) -> str:
        """Say what is measured, and at what cost."""
        probe, shares = self.probe, [t for t in self.wanted.along if t < 1]
        reason = f" ({probe.why})" if probe.why else ""
        told = f"forgetting: probe {probe.kind}{reason}"
        if not shares:
            return f"{told}; {probe.passes:,} examples before and after each final run"
        validation = len(session.examples["validation"])
        passes = len(shares) * (probe.passes + len(self.chosen))
        return (
            f"{told}; at t = {', '.join(f'{t:g}' for t in shares)} of what was learned, also {len(self.chosen):,} of "
            f"{validation:,} validation examples: {passes:,} forward passes more for each final run of an arm"
        )

    def _is_whole(self, session: Session) -> bool:
        return len(self.chosen) == len(session.examples["validation"])

    def _point(self, t: float, session: Session, operation: Operation, change: float) -> AlongPoint:
        from surgery.operation.blend import blended

        with blended(operation, t, self.kept):
            return _point(t, session, self._learned(session), self.probe.measure(session), change)

    def _learned(self, session: Session) -> Mapping[str, float]:
        from surgery.training.fit import evaluate

        key = ("along", self.chosen)
        if self._is_whole(session):
            return evaluate(session, "validation").metrics
        cache: dict[Any, Any] = session.cache.setdefault(key, {})
        examples = {"validation": [session.examples["validation"][index] for index in self.chosen]}
        return evaluate(replace(session, examples=examples, cache=cache), "validation").metrics


def known_of(cell: Cell, session: Session) -> Known | None:
    """Return what is measured in `cell`, made once for a session; None where the study asks for nothing.

    No operation may be active.

    Raises:
        DataError: rows that the probe cannot use.
    """
    wanted = cell.forgetting
    if wanted is None:
        return None
    key = ("known", repr(wanted))
    if key not in session.cache:
        from surgery.training.overlap import overlap
        from surgery.training.probes import make_probe

        probe = make_probe(session, wanted.data, wanted.probe, mask_rate=wanted.mask_rate, max_length=wanted.max_length)
        texts = (
            value
            for table in session.tables.values()
            for row in table
            for name, value in row.items()
            if name != "label" and isinstance(value, str)
        )
        shared = overlap(probe.texts, texts)
        session.cache[key] = Known(wanted, probe, shared, _new_head(session), _chosen(session, wanted))
    found: Known = session.cache[key]
    return found


def _new_head(session: Session) -> frozenset[str]:
    """Return the names of the head's parameters, where the checkpoint lacks any of them: a head is learned as one."""
    from surgery.planning import sites

    if not session.new_parameters:
        return frozenset()
    heads = {site.name for site in sites(session.model, session.registry) if site.role.startswith("head.")}
    return frozenset(heads.union(session.new_parameters))


def _chosen(session: Session, wanted: Forgetting) -> tuple[int, ...]:
    """Return which validation examples are used, by a hash of their place: the first ones may all have one label."""
    from surgery.training.seeds import named_seed

    count = len(session.examples["validation"])
    ranked = sorted(range(count), key=lambda index: (named_seed("surgery", "along", index), index))
    return tuple(sorted(ranked[: wanted.examples]))


def _point(
    t: float, session: Session, metrics: Mapping[str, float | None], reading: Reading, change: float | None
) -> AlongPoint:
    return AlongPoint(
        t=t,
        metric=_finite(metrics.get(session.task.metric)),
        loss=_finite(metrics.get("loss")),
        score=_finite(reading.score),
        values=_values(reading),
        change=None if change is None else _finite(t * change),
    )


def _values(reading: Reading) -> list[float | None]:
    return [_finite(value) for value in reading.values.tolist()]


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN: what is not finite is told as null."""
    return value if value is not None and math.isfinite(value) else None
