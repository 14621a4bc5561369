"""The fairness audit: was every arm given the same thing, and was the test left alone? A red line blocks verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from surgery.study.predicted import FAR, apart
from surgery.study.record import CellRecord
from surgery.study.spec import FROZEN, StudySpec
from surgery.study.verdict import ENOUGH_SEEDS, FEWEST_SEEDS

__all__ = ["Check", "Status", "audit", "blocking", "untrained"]

Status: TypeAlias = Literal["pass", "warn", "fail", "none"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the checklist.

    Attributes:
        name: what was checked.
        status: `pass`, `warn` (read the results with care), `fail`, or `none` (does not apply here).
        detail: what was found.
        blocks: whether a failure makes verdicts meaningless.
    """

    name: str
    status: Status
    detail: str
    blocks: bool = True


def blocking(checks: Iterable[Check]) -> str:
    """Return why no verdict may be given, or an empty text."""
    return "; ".join(f"{check.name}: {check.detail}" for check in checks if check.status == "fail" and check.blocks)


def audit(study: StudySpec, records: Sequence[CellRecord], edges: Sequence[str]) -> tuple[Check, ...]:
    """Return every check in the order the report prints them.

    Args:
        study: what was to be run.
        records: every finished cell.
        edges: arms whose chosen learning rate lies at the end of its grid.
    """
    final = [record for record in records if record["phase"] == "final"]
    trained = [record for record in final if record["trains"]]
    return (
        _same("base weights", records, lambda record: record["hashes"].get("base")),
        _same("tokenizer", records, lambda record: record["hashes"].get("tokenizer")),
        _same("data and splits", records, lambda record: record["hashes"].get("data")),
        _per_seed("order of the training examples", trained, "order"),
        _per_seed("initial head tensors", trained, "head") if study.head else _none("initial head tensors", "no head"),
        _budget(trained),
        _head_rate(study),
        _test_reads(records),
        _tuning_seed(study),
        _swept(study),
        _edges(study, edges),
        _seeds(study),
        _learned(study, final),
        _round_trip(final),
        _same("software versions", records, lambda record: _flat(record["versions"])),
        _machines(records),
        _predicted(study, final),
    )


def untrained(final: Sequence[CellRecord]) -> dict[str, str]:
    """Return arm -> why it counts as not trained, for arms of which a run learned nothing or diverged."""
    base = next(
        (record["validation"].get("loss") for record in final if record["arm"] == FROZEN and not record["trains"]), None
    )
    found: dict[str, str] = {}
    for record in final:
        if not record["trains"] or record["arm"] == FROZEN or record["arm"] in found:
            continue
        loss, majority = record["validation"].get("loss"), record["majority"]
        floor = majority["validation_loss"] if majority else base
        if record["diverged"] or loss is None:
            found[record["arm"]] = f"seed {record['seed']} diverged"
        elif floor is not None and loss >= floor:
            than = "always answering the training set's class shares" if majority else "the untouched base"
            found[record["arm"]] = (
                f"seed {record['seed']} ends at a validation loss of {loss:.4g}, no better than {than} ({floor:.4g})"
            )
    return found


def _none(name: str, detail: str) -> Check:
    return Check(name, "none", detail)


def _flat(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _same(name: str, records: Sequence[CellRecord], value: Callable[[CellRecord], str | None]) -> Check:
    found: dict[str, str] = {}
    for record in records:
        if (text := value(record)) is not None:
            found.setdefault(text, f"{record['arm']}, seed {record['seed']}")
    if not found:
        return _none(name, "not recorded")
    if len(found) == 1:
        return Check(name, "pass", f"the same in all {len(records)} runs ({_short(next(iter(found)))})")
    told = "; ".join(f"{_short(text)} in {where}" for text, where in found.items())
    return Check(name, "fail", f"{len(found)} different ones: {told}")


def _short(text: str) -> str:
    return text[:12] if len(text) >= 32 and " " not in text else text


def _per_seed(name: str, trained: Sequence[CellRecord], key: str) -> Check:
    by_seed: dict[int, dict[str, list[str]]] = {}
    for record in trained:
        text = record["hashes"].get(key)
        if text is not None:
            by_seed.setdefault(record["seed"], {}).setdefault(text, []).append(record["arm"])
    if not by_seed:
        return _none(name, "not recorded")
    for seed, found in sorted(by_seed.items()):
        if len(found) > 1:
            told = "; ".join(f"{text[:12]} in {', '.join(arms)}" for text, arms in found.items())
            return Check(name, "fail", f"arms differ on seed {seed}: {told}")
    shown = ", ".join(f"{seed}: {next(iter(found))[:8]}" for seed, found in sorted(by_seed.items()))
    return Check(name, "pass", f"equal in every arm of a seed ({shown})")


def _budget(trained: Sequence[CellRecord]) -> Check:
    name = "examples, tokens and updates"
    found: dict[tuple[int, int, int], str] = {}
    by_seed: dict[int, set[tuple[int, int, int]]] = {}
    for record in trained:
        given = (record["budget"]["examples"], record["budget"]["tokens"], record["budget"]["updates"])
        found.setdefault(given, f"{record['arm']}, seed {record['seed']}")
        by_seed.setdefault(record["seed"], set()).add(given)
    if not found:
        return _none(name, "nothing was trained")
    told = "; ".join(f"{e:,} examples, {t:,} tokens, {u:,} updates in {where}" for (e, t, u), where in found.items())
    # Lengths differ between draws of examples, so tokens may differ between seeds, never between the arms of one seed.
    if any(len(given) > 1 for given in by_seed.values()):
        return Check(name, "fail", f"unequal: {told}")
    examples, tokens, updates = next(iter(found))
    between = "" if len(found) == 1 else " (tokens differ between seeds only)"
    return Check(
        name, "pass", f"{examples:,} examples, {tokens:,} tokens and {updates:,} updates in every arm{between}"
    )


def _head_rate(study: StudySpec) -> Check:
    if not study.head:
        return _none("learning rate of the head", "no head")
    return Check("learning rate of the head", "pass", f"{study.head_learning_rate:g} in every arm")


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


def _tuning_seed(study: StudySpec) -> Check:
    name = "tuning seed"
    if not any(arm.swept for arm in study.arms.values()):
        return _none(name, "nothing was tuned")
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


def _edges(study: StudySpec, edges: Sequence[str]) -> Check:
    name = "learning rates inside their grids"
    if not any(arm.swept for arm in study.arms.values()):
        return _none(name, "there were no grids")
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
        return _none(name, "nothing was merged")
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
        return _none(name, "not measured")
    far = {arm: apart(record["memory"], record.get("cost")) for arm, record in by_arm.items()}
    told = [f"{study.label(arm)}: {', '.join(names)}" for arm, names in far.items() if names]
    if told:
        return Check(
            name, "warn", f"more than {FAR * 100:.0f} % from what was measured: {'; '.join(told)}", blocks=False
        )
    unknown = {cost["predicted"]["why"] for record in by_arm.values() if (cost := record.get("cost"))} - {""}
    if unknown:
        return _none(name, f"not predicted: {'; '.join(sorted(unknown))}")
    return Check(
        name, "pass", f"work and memory of every arm within {FAR * 100:.0f} % of what was measured", blocks=False
    )
