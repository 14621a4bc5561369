"""The fairness audit: was every arm given the same thing, and was the test left alone? A red line blocks verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.study.checks import Check, Status, blocking, none, same
from surgery.study.choose import Choice
from surgery.study.fairness import (
    budget_check,
    decay_check,
    dropout_check,
    head_check,
    head_rate_check,
    order_check,
    overlap_check,
    rows_check,
    scale_check,
    scored_check,
    start_check,
)
from surgery.study.predicted import FAR, apart
from surgery.study.record import CellRecord
from surgery.study.spec import FROZEN, StudySpec
from surgery.study.verdict import ENOUGH_SEEDS, FEWEST_SEEDS

__all__ = ["Check", "Status", "audit", "blocking", "never_trained", "untrained"]


def audit(study: StudySpec, records: Sequence[CellRecord], choices: Sequence[Choice]) -> tuple[Check, ...]:
    """Return every check in the order the report prints them.

    Args:
        study: what was to be run.
        records: every finished cell.
        choices: how each learning rate was chosen.
    """
    final = [record for record in records if record["phase"] == "final"]
    trained = [record for record in final if record["trains"]]
    return (
        same("base weights", records, lambda record: record["hashes"].get("base")),
        start_check(records),
        same("tokenizer", records, lambda record: record["hashes"].get("tokenizer")),
        same("data and splits", records, lambda record: record["hashes"].get("data")),
        overlap_check(records),
        same("metric", records, _metric),
        order_check(trained),
        head_check(study, trained),
        budget_check(study, trained),
        head_rate_check(study, trained),
        dropout_check(study, trained),
        decay_check(study, trained),
        scale_check(study, trained),
        _test_reads(records),
        scored_check(study, trained),
        _tuning_seed(study, records),
        _swept(study),
        _search(study, choices),
        _edges(study, choices),
        _seeds(study),
        rows_check(final),
        _learned(study, final),
        _round_trip(final),
        same("software versions", records, lambda record: _flat(record["versions"])),
        _machines(records),
        _predicted(study, final),
    )


def untrained(final: Sequence[CellRecord]) -> dict[str, str]:
    """Return arm -> why it counts as not trained, for arms of which a run learned nothing or diverged."""
    told: dict[str, str] = {}
    for arm, failed in _failed(final).items():
        runs = sum(record["arm"] == arm for record in final)
        many = f" ({len(failed)} of {runs} runs)" if runs > 1 and len(failed) > 1 else ""
        told[arm] = next(iter(failed.values())) + many
    return told


def never_trained(final: Sequence[CellRecord]) -> frozenset[str]:
    """Return the arms of which no run trained: there is nothing that a verdict could be about."""
    runs = {arm: sum(record["arm"] == arm for record in final) for arm in {record["arm"] for record in final}}
    return frozenset(arm for arm, failed in _failed(final).items() if len(failed) == runs[arm])


def _failed(final: Sequence[CellRecord]) -> dict[str, dict[int, str]]:
    """Return arm -> seed -> why that run counts as not trained."""
    base = next(
        (record["validation"].get("loss") for record in final if record["arm"] == FROZEN and not record["trains"]), None
    )
    found: dict[str, dict[int, str]] = {}
    for record in final:
        if not record["trains"] or record["arm"] == FROZEN:
            continue
        loss, majority, seed = record["validation"].get("loss"), record["majority"], record["seed"]
        floor = majority["validation_loss"] if majority else base
        if record["diverged"] or loss is None:
            found.setdefault(record["arm"], {})[seed] = f"seed {seed} diverged"
        elif floor is not None and loss >= floor:
            than = "always answering the training set's class shares" if majority else "the untouched base"
            found.setdefault(record["arm"], {})[seed] = (
                f"seed {seed} ends at a validation loss of {loss:.4g}, no better than {than} ({floor:.4g})"
            )
    return found


def _flat(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _metric(record: CellRecord) -> str:
    metric = record["metric"]
    return f"{metric['name']}, {'greater' if metric['greater_is_better'] else 'smaller'} is better"


def _test_reads(records: Sequence[CellRecord]) -> Check:
    name = "test split"
    peeked = [record for record in records if record["phase"] == "tune" and record["test_reads"]]
    if peeked:
        return Check(name, "fail", f"read while tuning {peeked[0]['arm']}: it no longer is a test")
    often = [record for record in records if record["phase"] == "final" and record["test_reads"] != 1]
    reads = sum(record["test_reads"] for record in records)
    if often:
        return Check(name, "fail", f"read {often[0]['test_reads']} times in one run of {often[0]['arm']}, not once")
    return Check(name, "pass", f"read {reads} times: once for each final run, never for choosing")


def _tuning_seed(study: StudySpec, records: Sequence[CellRecord]) -> Check:
    name = "tuning seed"
    tuned = {record["seed"] for record in records if record["phase"] == "tune"}
    if both := tuned & {record["seed"] for record in records if record["phase"] == "final"}:
        return Check(name, "fail", f"{min(both)} chose learning rates and is reported, too")
    if not any(arm.swept for arm in study.arms.values()):
        return none(name, "nothing was tuned")
    return Check(name, "pass", f"{study.tuning_seed}, which reports nothing")


def _swept(study: StudySpec) -> Check:
    name = "learning rates chosen on validation loss"
    missing = [study.label(arm) for arm, spec in study.arms.items() if not spec.swept]
    if not missing:
        sizes = ", ".join(f"{study.label(arm)} from {len(spec.learning_rate)}" for arm, spec in study.arms.items())
        return Check(name, "pass", sizes)
    rates = {spec.learning_rate for spec in study.arms.values()}
    shared = (
        "; all arms share one rate, which by itself can decide the winner" if len(rates) == 1 < len(study.arms) else ""
    )
    return Check(name, "warn", f"unswept: {', '.join(missing)}; their verdicts hold for the given rate only{shared}")


def _search(study: StudySpec, choices: Sequence[Choice]) -> Check:
    name = "search budget"
    swept = [choice for choice in choices if choice.swept]
    if not swept:
        return none(name, "there were no grids")
    allowed = {len(study.arms[choice.arm].learning_rate) for choice in swept}
    tries = ", ".join(
        f"{study.label(choice.arm)} {len(choice.grid)}"
        + (f" ({_rates(choice.extra)} beyond its grid)" if choice.extra else "")
        for choice in swept
    )
    further = f"up to {study.extend_grids} more at an edge" if study.extend_grids else "none beyond the grids"
    if len(allowed) > 1:
        return Check(name, "warn", f"grids of different sizes ({further}); tries: {tries}")
    return Check(name, "pass", f"{allowed.pop()} tries for every grid, {further}; tries: {tries}")


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def _edges(study: StudySpec, choices: Sequence[Choice]) -> Check:
    name = "learning rates inside their grids"
    edges = [study.label(choice.arm) for choice in choices if choice.edge]
    if not any(arm.swept for arm in study.arms.values()):
        return none(name, "there were no grids")
    if edges:
        return Check(name, "warn", f"the best lies at an edge for {', '.join(edges)}: a wider grid may do better")
    return Check(name, "pass", "no chosen rate lies at the edge of its grid")


def _seeds(study: StudySpec) -> Check:
    count = len(study.seeds)
    if count >= ENOUGH_SEEDS:
        return Check("seeds", "pass", f"{count}")
    if count >= FEWEST_SEEDS:
        is_swept = all(arm.swept for arm in study.arms.values())
        firm = f"{ENOUGH_SEEDS} make them firm"
        if not is_swept:
            firm = f"{ENOUGH_SEEDS} seeds and learning rates that are chosen from grids make them firm"
        return Check("seeds", "warn", f"{count}: verdicts are indicative, {firm}")
    return Check("seeds", "warn", f"{count}: too few for any verdict, {FEWEST_SEEDS} at least")


def _learned(study: StudySpec, final: Sequence[CellRecord]) -> Check:
    name = "every arm learned"
    found = untrained(final)
    if not found:
        return Check(name, "pass", "every run ends below the loss that needs no training")
    told = "; ".join(f"{study.label(arm)}: {why}" for arm, why in found.items())
    if study.reference in found:
        return Check(name, "fail", f"the reference did not train, so nothing can be compared with it ({told})")
    return Check(name, "warn", f"did not train: {told}")


def _round_trip(final: Sequence[CellRecord]) -> Check:
    name = "merge and unmerge give back the base"
    trips = [record["merge"] for record in final if record["merge"]]
    if not trips:
        return none(name, "nothing was merged")
    elements, differ = sum(trip["elements"] for trip in trips), sum(trip["differ"] for trip in trips)
    if differ:
        return Check(name, "fail", f"{differ:,} of {elements:,} numbers changed their bits", blocks=False)
    return Check(name, "pass", f"0 of {elements:,} numbers changed a bit in {len(trips)} round trips")


def _machines(records: Sequence[CellRecord]) -> Check:
    name = "one machine"
    found = {_flat({key: str(value) for key, value in record["machine"].items()}) for record in records}
    if len(found) > 1:
        return Check(name, "warn", f"{len(found)} kinds of machine: times are not comparable", blocks=False)
    return Check(name, "pass", "times were taken on one kind of machine", blocks=False)


def _predicted(study: StudySpec, final: Sequence[CellRecord]) -> Check:
    name = "cost as predicted"
    by_arm = {record["arm"]: record for record in reversed(final) if record.get("cost")}
    if not by_arm:
        return none(name, "not measured")
    far = {arm: apart(record["memory"], record.get("cost")) for arm, record in by_arm.items()}
    told = [f"{study.label(arm)}: {', '.join(names)}" for arm, names in far.items() if names]
    if told:
        return Check(
            name, "warn", f"more than {FAR * 100:.0f} % from what was measured: {'; '.join(told)}", blocks=False
        )
    unknown = {cost["predicted"]["why"] for record in by_arm.values() if (cost := record.get("cost"))} - {""}
    if unknown:
        return none(name, f"not predicted: {'; '.join(sorted(unknown))}")
    return Check(
        name, "pass", f"work and memory of every arm within {FAR * 100:.0f} % of what was measured", blocks=False
    )
