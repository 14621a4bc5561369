"""From the records of a study to the numbers a reader decides from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from surgery.study.audit import Check, audit, blocking, never_trained, untrained
from surgery.study.averages import estimate, largest, mean, median, metric_of
from surgery.study.checks import red_lines
from surgery.study.choose import Choice
from surgery.study.fairness import best_step
from surgery.study.forgetting.arms import Forgotten, rise, unit_of_probe
from surgery.study.forgetting.checks import probe_checks
from surgery.study.forgetting.forgotten import forgotten
from surgery.study.measure import Measure, Score, measure, not_numbers
from surgery.study.overlaps import SubspaceOverlap
from surgery.study.predicted import StepCost, apart
from surgery.study.readings import Reading, readings
from surgery.study.record import CellRecord, Memory, MetricInfo
from surgery.study.secondary import Secondary, secondary
from surgery.study.spec import FROZEN, MAJORITY, Axis, StudySpec
from surgery.study.statistics import Estimate, Interval, Paired, holm, mcnemar, paired
from surgery.study.turns import Clock, Turns
from surgery.study.verdict import Verdict, judge, too_few, withheld

__all__ = ["Kind", "Row", "Summary", "summarise"]

Kind: TypeAlias = Literal["reference", "arm", "frozen", "majority"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. None means: does not apply, or was not measured.

    Attributes:
        arm, label, kind: which one.
        adapter, head, share: trainable numbers outside and inside the head; both as a share of the base model (0-1).
        rate, grid, swept, edge: learning rate, where it came from, whether it was chosen, and at an edge.
        test: the primary metric on the test split.
        test_loss, validation_loss: in nats, over seeds.
        pair, interval, narrow, p, adjusted_p, detectable: difference to the reference, 95 % and 90 % intervals, p,
            Holm's p, smallest true difference that would be found with 80 % power (None where nothing varies).
        verdict: of the pair.
        step, step_low, step_high, step_cpu: seconds of one training step: median and quartiles of the wall time, median
            of the CPU time; of each the median over seeds.
        clock: times of steps and forward passes while arms took turns; `step` and its like are then the clock's own.
        memory: bytes by component.
        cost, apart: work of the first batch's step, measured and predicted, and which predictions are far off.
        device_peak: most bytes that a GPU held while training, over seeds.
        checkpoint_bytes: size of the adapter checkpoint's files.
        elements, differ: numbers compared in merge round trips, and those whose bits changed.
        logit_change: largest change of a logit by merging, over seeds.
        forgetting, known_before, known_after: how much worse the probe of forgetting is, and its scores, in its unit.
        flag: why the arm counts as not trained; empty if it does not.
        state: `trained`, `partly` (some runs did not), or `did not train`; then there is no verdict on it.
        steps, best_step, best_loss: the last step, the one with the smallest validation loss (the median over seeds),
            and that loss in nats. All scores are those of the last step.
    """

    arm: str
    label: str
    kind: Kind
    adapter: int | None = None
    head: int | None = None
    share: float | None = None
    rate: float | None = None
    grid: tuple[float, ...] = ()
    swept: bool = False
    edge: bool = False
    test: Estimate | None = None
    test_loss: Estimate | None = None
    validation_loss: Estimate | None = None
    pair: Paired | None = None
    interval: Interval | None = None
    narrow: Interval | None = None
    p: float | None = None
    adjusted_p: float | None = None
    detectable: float | None = None
    verdict: Verdict | None = None
    step: float | None = None
    step_low: float | None = None
    step_high: float | None = None
    step_cpu: float | None = None
    clock: Clock | None = None
    memory: Memory | None = None
    cost: StepCost | None = None
    apart: tuple[str, ...] = ()
    device_peak: int | None = None
    checkpoint_bytes: int | None = None
    elements: int | None = None
    differ: int | None = None
    logit_change: float | None = None
    forgetting: Estimate | None = None
    known_before: float | None = None
    known_after: float | None = None
    flag: str = ""
    state: Literal["trained", "partly", "did not train"] = "trained"
    steps: int | None = None
    best_step: float | None = None
    best_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole study in numbers; `summary.json` holds it.

    Attributes:
        name, study: name and hash of the study.
        metric: the primary metric.
        margin: declared equivalence margin, in the unit of the metric.
        reference: the arm that others are compared with.
        seeds, items: sample sizes S and n (test items).
        clock: which time of a step compares arms: `cpu` where models run on the CPU, whose wall time every other
            program stretches, else `wall`.
        rows: the reference, the arms, then the frozen row and the majority class.
        checks: the fairness audit.
        choices: how each learning rate was chosen.
        test_reads: how often the test split was read in all.
        notes: what else a reader must know.
        axis: what every arm got the same amount of.
        readings: losses at equal amounts of every axis, from the same curves.
        secondary: the study's further metrics.
        forgotten: what each arm forgot, at the end and at equal learning; None where that was not measured.
        probe_unit: unit of what `Row.forgetting` says.
        overlaps: how far arms and seeds changed the same directions, where weights were looked at.
        results: digest of the results that all this was made from (`surgery.study.results.digest_of`); empty in
            summaries of earlier versions.
    """

    name: str
    study: str
    metric: MetricInfo
    margin: float
    reference: str
    seeds: tuple[int, ...]
    items: int
    clock: Literal["cpu", "wall"]
    rows: tuple[Row, ...]
    checks: tuple[Check, ...]
    choices: tuple[Choice, ...]
    test_reads: int
    notes: tuple[str, ...] = ()
    axis: Axis = "steps"
    readings: tuple[Reading, ...] = ()
    secondary: tuple[Secondary, ...] = ()
    forgotten: Forgotten | None = None
    probe_unit: str = "nats"
    overlaps: tuple[SubspaceOverlap, ...] = ()
    results: str = ""

    def row(self, arm: str) -> Row:
        """Return the row of `arm`."""
        return next(row for row in self.rows if row.arm == arm)

    @property
    def blocked(self) -> str:
        """Why no verdict may be given; empty if verdicts may be."""
        return blocking(self.checks)


def summarise(
    study: StudySpec,
    records: Sequence[CellRecord],
    choices: Sequence[Choice],
    score: Score | None = None,
    turns: Mapping[str, Turns] | None = None,
) -> Summary:
    """Return the numbers of a finished study. Deterministic: equal records give an equal summary.

    Args:
        study: what was to be run.
        records: every finished cell.
        choices: the learning rate of each arm.
        score: the task's metrics from per-item arrays, for metrics that are no mean over items.
        turns: arm -> what the clock said; without it, times are those of the runs themselves.
    """
    final = [record for record in records if record["phase"] == "final"]
    # The reference's: where arms have others, the audit has a red line, and theirs stand in no column.
    metric = next((record for record in final if record["arm"] == study.reference), final[0])["metric"]
    seeds = study.seeds
    lost = forgotten(study, final, untrained(final))
    checks = (*audit(study, records, choices), *probe_checks(study, final, lost))
    measured = measure(final, metric["name"], seeds, study.resamples, score)
    rows = [_row(study, arm, final, choices) for arm in _order(study, final)]
    rows = [_clocked(row, (turns or {}).get(row.arm)) for row in rows]
    others = [arm for arm in measured.arms if arm != study.reference and study.reference in measured.points]
    pairs = {arm: _pair(measured, arm, study) for arm in others}
    unknown = not_numbers(final, metric["name"])
    rows = _judged(study, metric, rows, pairs, checks, unknown)
    clock: Literal["cpu", "wall"] = (
        "cpu" if all(record["machine"].get("device", "CPU") == "CPU" for record in final) else "wall"
    )
    seconds = {row.arm: row.step_cpu if clock == "cpu" else row.step for row in rows}
    return Summary(
        name=study.name,
        study=study.hash,
        metric=metric,
        margin=study.margin,
        reference=study.reference,
        seeds=seeds,
        items=measured.items,
        clock=clock,
        rows=tuple(rows),
        checks=checks,
        choices=tuple(choices),
        test_reads=sum(record["test_reads"] for record in records),
        notes=(
            *dict.fromkeys(note for record in records for note in record["notes"]),
            *(f"{told}: not shown" for name in study.metrics for told in not_numbers(final, name).values()),
        ),
        axis=study.budget.axis,
        readings=readings(study, final, seconds),
        secondary=secondary(study, final, score),
        forgotten=lost,
        probe_unit=unit_of_probe(final),
    )


def _order(study: StudySpec, final: Sequence[CellRecord]) -> list[str]:
    baselines = [MAJORITY] if any(record["majority"] for record in final) else []
    others = [arm for arm in study.arms if arm != study.reference]
    return [study.reference, *others, FROZEN, *baselines]


def _kind(study: StudySpec, arm: str) -> Kind:
    if arm == MAJORITY:
        return "majority"
    if arm == FROZEN:
        return "frozen"
    return "reference" if arm == study.reference else "arm"


def _row(study: StudySpec, arm: str, final: Sequence[CellRecord], choices: Sequence[Choice]) -> Row:
    row = Row(arm, study.label(arm), _kind(study, arm))
    if arm == MAJORITY:
        return _majority_row(row, final)
    own = [record for record in final if record["arm"] == arm]
    first = own[0]
    choice = next((choice for choice in choices if choice.arm == arm), None)
    total = first["parameters"]["adapter"] + first["parameters"]["head"]
    trips = [record["merge"] for record in own if record["merge"]]
    row = replace(
        row,
        adapter=first["parameters"]["adapter"],
        head=first["parameters"]["head"],
        share=total / max(first["parameters"]["model"], 1),
        rate=first["learning_rate"] if first["trains"] else None,
        grid=choice.grid if choice else (),
        swept=choice.swept if choice else False,
        edge=choice.edge if choice else False,
        test=estimate([metric_of(record["test"], first["metric"]["name"]) for record in own]),
        test_loss=estimate([metric_of(record["test"], "loss") for record in own]),
        validation_loss=estimate([record["validation"].get("loss") for record in own]),
        step=median([record["timing"]["step"] for record in own]),
        step_low=median([record["timing"]["step_low"] for record in own]),
        step_high=median([record["timing"]["step_high"] for record in own]),
        step_cpu=median([record["timing"]["step_cpu"] for record in own]),
        memory=first["memory"],
        cost=first.get("cost"),
        apart=apart(first["memory"], first.get("cost")),
        device_peak=max((record["timing"].get("device_peak", 0) for record in own), default=0) or None,
        checkpoint_bytes=first["checkpoint_bytes"] if first["trains"] else None,
        elements=sum(trip["elements"] for trip in trips) if trips else None,
        differ=sum(trip["differ"] for trip in trips) if trips else None,
        logit_change=largest([trip["logit_change"] for trip in trips]),
        flag=(flag := untrained(final).get(arm, "")),
        state=("did not train" if arm in never_trained(final) else "partly") if flag else "trained",
        steps=first["budget"]["updates"] if first["trains"] else None,
        best_step=median([best_step(record) for record in own]) if first["trains"] else None,
        best_loss=mean([_lowest(record) for record in own]) if first["trains"] else None,
    )
    return _with_forgetting(row, own)


def _lowest(record: CellRecord) -> float | None:
    return min((p["validation_loss"] for p in record["curve"] if p["validation_loss"] is not None), default=None)


def _clocked(row: Row, turns: Turns | None) -> Row:
    """Return the row with the clock's times: arms that took turns can be compared, whoever else used the machine."""
    clock = Clock.of(turns)
    if clock is None or clock.step is None or clock.step_cpu is None:
        return row
    step = clock.step
    return replace(
        row, clock=clock, step=step.median, step_low=step.low, step_high=step.high, step_cpu=clock.step_cpu.median
    )


def _with_forgetting(row: Row, own: Sequence[CellRecord]) -> Row:
    lost = [record["forgetting"] for record in own if record["forgetting"]]
    before, after = [item["before"] for item in lost], [item["after"] for item in lost]
    if not lost:
        return row
    risen = [rise(item) for item in lost]
    return replace(row, forgetting=estimate(risen), known_before=mean(before), known_after=mean(after))


def _majority_row(row: Row, final: Sequence[CellRecord]) -> Row:
    record = next(record for record in final if record["majority"])
    majority = record["majority"]
    assert majority is not None
    value = metric_of(majority["test"], record["metric"]["name"])
    return replace(
        row,
        adapter=0,
        head=0,
        share=0.0,
        test=estimate([value]),
        test_loss=estimate([metric_of(majority["test"], "loss")]),
        validation_loss=estimate([majority["validation_loss"]]),
    )


def _pair(measured: Measure, arm: str, study: StudySpec) -> Paired:
    """Return `arm` minus the reference, seed by seed and item by item."""
    point = measured.points[arm] - measured.points[study.reference]
    draws = measured.draws[arm] - measured.draws[study.reference]
    pair = paired([float(value) for value in point], draws, measured.items, 0)
    right = measured.right
    if len(study.seeds) == 1 and right is not None:
        return replace(pair, mcnemar=mcnemar(right[arm][0].tolist(), right[study.reference][0].tolist()))
    return pair


def _judged(
    study: StudySpec,
    metric: MetricInfo,
    rows: Sequence[Row],
    pairs: Mapping[str, Paired],
    checks: Sequence[Check],
    unknown: Mapping[str, str],
) -> list[Row]:
    # Baselines are sanity rows, not candidates: they do not enter Holm's family.
    family = [row.arm for row in rows if row.kind == "arm" and row.arm in pairs]
    adjusted = dict(zip(family, holm([pairs[arm].p for arm in family]), strict=True))
    reference = next(row for row in rows if row.kind == "reference")
    blocked, told = blocking(checks), red_lines(checks)
    judged = []
    for row in rows:
        pair = pairs.get(row.arm)
        if pair is None:
            # Whatever else is wrong: without a number there would be no verdict either.
            numbers = [unknown[arm] for arm in (row.arm, study.reference) if arm in unknown]
            why = "; ".join(filter(None, (row.flag or reference.flag, *numbers))) or "a run has no finite metric"
            seeds = len(study.seeds)
            unmeasured = Verdict("unresolved", "; ".join(filter(None, (why, too_few(seeds)))))
            unmeasured = withheld(blocked, "; ".join((told, *numbers)), seeds) if blocked else unmeasured
            judged.append(row if row.kind == "reference" else replace(row, verdict=unmeasured))
            continue
        holms = adjusted.get(row.arm)
        if blocked:
            verdict = withheld(blocked, told, pair.seeds)
        else:
            verdict = judge(
                pair,
                study.margin,
                greater_is_better=metric["greater_is_better"],
                adjusted_p=holms,
                blocked=f"did not train: {row.flag}" if row.state == "did not train" else "",
                unswept=row.kind == "arm" and not (row.swept and reference.swept),
            )
        judged.append(
            replace(
                row,
                pair=pair,
                interval=pair.interval(0.95),
                narrow=pair.interval(0.90),
                p=pair.p,
                adjusted_p=holms,
                # Differences without any spread say nothing of how small a one would be found.
                detectable=pair.detectable or None,
                verdict=verdict,
            )
        )
    return judged
