"""How every run was made, held against the others: start, order, budget, optimizer, splits, and when it was scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from surgery.study.checks import Check, none, same
from surgery.study.conditions import Conditions
from surgery.study.predicted import FAR
from surgery.study.record import CellRecord
from surgery.study.spec import FROZEN, StudySpec

__all__ = [
    "best_step",
    "budget_check",
    "decay_check",
    "dropout_check",
    "head_check",
    "head_rate_check",
    "order_check",
    "overlap_check",
    "rows_check",
    "scale_check",
    "scored_check",
    "start_check",
]

_FEW_SHARED = 0.01
"""Share of the test rows that may stand in another split, too: short texts repeat, and a handful decides nothing."""

_NOISE = 0.25
"""Share by which seconds of equal budgets may differ before it is no noise of the clock."""


def start_check(records: Sequence[CellRecord]) -> Check:
    """Every arm of one seed begins with the same bits of base and head, hashed in its own run."""
    return _per_seed("state at the start", records, lambda record: record["hashes"].get("start"))


def order_check(trained: Sequence[CellRecord]) -> Check:
    """Every arm of one seed sees the same examples in the same order, as far as it goes."""
    name = "order of the training examples"
    lengths = {record["budget"]["updates"] for record in trained}
    if len(lengths) < 2 or not all(_told(record) for record in trained):
        return _per_seed(name, trained, lambda record: record["hashes"].get("order"))
    for seed, own in _by_seed(trained).items():
        for one, other in pairwise(own):
            left, right = _of(one)["order"], _of(other)["order"]
            for place, (first, second) in enumerate(zip(left, right, strict=False)):
                if first != second:
                    told = f"{one['arm']} and {other['arm']} differ within the first {2**place:,} examples"
                    return Check(name, "fail", f"arms differ on seed {seed}: {told}")
    return Check(name, "pass", "equal in every arm of a seed, as far as the shorter run goes")


def head_check(study: StudySpec, trained: Sequence[CellRecord]) -> Check:
    """Every arm of one seed begins with the same head."""
    name = "initial head tensors"
    return _per_seed(name, trained, lambda r: r["hashes"].get("head")) if study.head else none(name, "no head")


def budget_check(study: StudySpec, trained: Sequence[CellRecord]) -> Check:
    """Every arm got the same, on the axis that the study names."""
    return _scaled(study, trained) if study.budget.axis in ("flops", "seconds") else _equal(trained)


def _equal(trained: Sequence[CellRecord]) -> Check:
    name = "examples, tokens and updates"
    found: dict[int, dict[tuple[int, int, int], list[str]]] = {}
    for record in trained:
        given = (record["budget"]["examples"], record["budget"]["tokens"], record["budget"]["updates"])
        found.setdefault(record["seed"], {}).setdefault(given, []).append(record["arm"])
    if not found:
        return none(name, "nothing was trained")
    # Lengths differ between draws of examples, so tokens may differ between seeds, never between the arms of one seed.
    for seed, by_given in sorted(found.items()):
        if len(by_given) > 1:
            told = "; ".join(
                f"{examples:,} examples, {tokens:,} tokens, {updates:,} updates in {', '.join(dict.fromkeys(arms))}"
                for (examples, tokens, updates), arms in by_given.items()
            )
            return Check(name, "fail", f"unequal on seed {seed}: {told}")
    all_given = list(dict.fromkeys(given for by_given in found.values() for given in by_given))
    examples, tokens, updates = all_given[0]
    if {(e, u) for e, _, u in all_given} != {(examples, updates)}:
        told = "; ".join(f"{e:,} examples, {u:,} updates" for e, _, u in all_given)
        return Check(name, "fail", f"unequal between seeds: {told}")
    between = "" if len(all_given) == 1 else " (tokens differ between seeds only)"
    return Check(
        name, "pass", f"{examples:,} examples, {tokens:,} tokens and {updates:,} updates in every arm{between}"
    )


def _scaled(study: StudySpec, trained: Sequence[CellRecord]) -> Check:
    """What every run spent, by its own measurements, against the reference's run on the same seed."""
    axis = study.budget.axis
    name = f"equal {'FLOPs' if axis == 'flops' else 'seconds'}"
    slack = FAR if axis == "flops" else _NOISE
    worst: tuple[float, str] = (0.0, "")
    for seed, own in _by_seed(trained).items():
        whole = {record["arm"]: _spent(record, axis) for record in own}
        mark = whole.get(study.reference)
        if mark is None or any(value is None for value in whole.values()):
            return none(name, "not measured")
        for record in own:
            spent, updates = whole[record["arm"]] or 0.0, max(record["budget"]["updates"], 1)
            # A run cannot end in the middle of a step.
            off = max(abs(spent - mark) - spent / updates, 0.0) / mark
            worst = max(worst, (off, f"{record['arm']}, seed {seed}: {spent / mark:.2f}x the reference's"))
    made = {record["arm"]: f"{record['budget']['updates']:,}" for record in trained}
    told = ", ".join(f"{study.label(arm)} {number}" for arm, number in made.items())
    if worst[0] > slack:
        return Check(name, "fail", f"unequal: {worst[1]} (updates: {told})")
    return Check(name, "pass", f"within {100 * slack:.0f} % of the reference's; updates: {told}")


def _spent(record: CellRecord, axis: str) -> float | None:
    updates = record["budget"]["updates"]
    if axis == "flops":
        cost = record.get("cost")
        return None if cost is None else float(updates * (cost["forward"] + cost["backward"]))
    device = record["machine"].get("device", "CPU")
    seconds = record["timing"]["step_cpu" if device == "CPU" else "step"]
    return None if seconds is None else updates * seconds


def head_rate_check(study: StudySpec, trained: Sequence[CellRecord]) -> Check:
    """The head learns at one rate in every arm: in the study, and in the groups of every optimizer."""
    name = "learning rate of the head"
    if not study.head:
        return none(name, "no head")
    heads = {" ".join(text for text in (rule.role, rule.target) if text) for rule in study.head}
    found = {
        (group["learning_rate"], record["arm"])
        for record in trained
        if _told(record)
        for group in _of(record)["groups"]
        if group["name"].removesuffix(", without decay") in heads
    }
    if len({rate for rate, _ in found}) > 1:
        return Check(name, "fail", f"unequal: {', '.join(f'{rate:g} in {arm}' for rate, arm in sorted(found))}")
    return Check(name, "pass", f"{study.head_learning_rate:g} in every arm")


def dropout_check(study: StudySpec, trained: Sequence[CellRecord]) -> Check:
    """The base drops out alike in every arm; what adapters drop is their own, and told."""
    told = [record for record in trained if _told(record)]
    check = same("dropout of the base", told, lambda record: _of(record)["dropout"])
    own = {study.label(record["arm"]): _of(record)["adapter_dropout"] for record in told}
    shown = "; ".join(f"{arm}: {_numbers(values)}" for arm, values in own.items() if any(values))
    if check.status == "pass" and shown:
        return Check(check.name, "pass", f"{check.detail}; of adapters' own: {shown}")
    return check


def decay_check(study: StudySpec, trained: Sequence[CellRecord]) -> Check:
    """Every arm clips alike and decays by the same rates; which of its numbers decay is each arm's own, and told."""
    name = "weight decay and clipping"
    first = {record["arm"]: record for record in reversed(trained) if _told(record)}
    if not first:
        return none(name, "not recorded")
    limits = {_of(record)["max_grad_norm"] for record in trained if _told(record)}
    decays = {
        group["weight_decay"]
        for record in trained
        if _told(record)
        for group in _of(record)["groups"]
        if group["weight_decay"]
    }
    allowed = {study.training.weight_decay, *(group.weight_decay for group in study.training.groups)}
    shown = "; ".join(f"{study.label(arm)}: {_decay(_of(record))}" for arm, record in first.items())
    if len(limits) > 1:
        told = " and ".join("never" if limit is None else f"to {limit:g}" for limit in sorted(limits, key=str))
        return Check(name, "fail", f"gradients are clipped {told}: {shown}")
    if strange := decays - allowed:
        return Check(
            name, "fail", f"a weight decay of {_numbers(sorted(strange))} that the study does not have: {shown}"
        )
    return Check(name, "pass", shown)


def _decay(told: Conditions) -> str:
    whole = sum(group["parameters"] for group in told["groups"])
    parts = [
        f"{sum(group['parameters'] for group in told['groups'] if group['weight_decay'] == decay):,} at {decay:g}"
        for decay in sorted({group["weight_decay"] for group in told["groups"] if group["weight_decay"]})
    ]
    clipped = "" if told["clipped"] is None else f", {100 * told['clipped']:.0f} % of steps clipped"
    return f"{' and '.join(parts) or 'none'} of {whole:,} decay{clipped}"


def scale_check(study: StudySpec, trained: Sequence[CellRecord]) -> Check:
    """The factor of an adapter's update is part of its learning rate: told for every arm that has one."""
    name = "scale of adapters' updates"
    told = {}
    for record in trained:
        if record["arm"] == FROZEN or not _told(record) or record["arm"] in told:
            continue
        found, rate = _of(record), record["learning_rate"]
        norm = "" if found["gradient_norm"] is None else f", first gradient of norm {found['gradient_norm']:.3g}"
        times = f", learning rate x scale {_numbers([rate * s for s in found['scales']])}" if found["scales"] else ""
        scale = f"scale {_numbers(found['scales'])}" if found["scales"] else "no scale"
        told[record["arm"]] = f"{study.label(record['arm'])}: {scale}{times}{norm}"
    return Check(name, "pass", "; ".join(told.values())) if told else none(name, "not recorded")


def scored_check(study: StudySpec, trained: Sequence[CellRecord]) -> Check:
    """Every arm is scored after its last step; where the curve was lower before, that is told and not used."""
    name = "scored after the last step"
    if not any(_told(record) for record in trained):
        return none(name, "not recorded")
    early = [record for record in trained if _told(record) and _of(record)["scored_at"] != record["budget"]["updates"]]
    if early:
        one = early[0]
        told = f"{one['arm']}, seed {one['seed']} was scored after step {_of(one)['scored_at']:,}"
        return Check(
            name, "fail", f"{told} of {one['budget']['updates']:,}, others after their last: a best is not a last"
        )
    lower: dict[str, list[int]] = {}
    for record in trained:
        best = best_step(record)
        if best is not None and best < record["budget"]["updates"]:
            lower.setdefault(study.label(record["arm"]), []).append(best)
    if lower:
        told = "; ".join(f"{arm} after {_numbers(sorted(set(steps)))}" for arm, steps in lower.items())
        return Check(name, "warn", f"in every arm; the validation loss was lower before the end: {told}")
    return Check(name, "pass", "in every arm, which is also where its validation loss is lowest")


def best_step(record: CellRecord) -> int | None:
    """Return the step with the smallest validation loss; None where the curve has no number."""
    points = [(point["validation_loss"], point["step"]) for point in record["curve"]]
    return min(((loss, step) for loss, step in points if loss is not None), default=(None, None))[1]


def overlap_check(records: Sequence[CellRecord]) -> Check:
    """The test's texts are in no other split: what chose, or trained, cannot judge."""
    name = "test rows apart from the others"
    told = next((_of(record) for record in records if _told(record)), None)
    digests = {(r["hashes"].get("data.validation"), r["hashes"].get("data.test")) for r in records}
    if any(validation is not None and validation == test for validation, test in digests):
        return Check(
            name, "fail", "the validation split is the test split: what chose learning rates cannot judge them"
        )
    if told is None or "test" not in told["rows"]:
        return none(name, "not recorded")
    shared, rows = told["shared_rows"], told["rows"]["test"]
    found = {split: shared.get(f"{split} & test", 0) for split in ("validation", "train")}
    shown = " and ".join(
        f"{count:,} of {rows:,} stand in the {split} split, too" for split, count in found.items() if count
    )
    if not shown:
        return Check(name, "pass", f"none of {rows:,} test rows stands in another split")
    if max(found.values()) > _FEW_SHARED * rows:
        return Check(name, "fail", f"{shown}: what was seen before cannot judge")
    return Check(name, "warn", f"{shown}: few enough to decide nothing")


def rows_check(final: Sequence[CellRecord]) -> Check:
    """The rows that show what no adapting gives are there: the frozen base, and always the most frequent class."""
    name = "baselines"
    frozen = any(record["arm"] == FROZEN for record in final)
    labelled = any(record["items"] and "label" in record["items"] for record in final)
    majority = any(record["majority"] for record in final)
    if not frozen:
        return Check(name, "fail", "the frozen row is missing: nothing shows what the arms add")
    if majority:
        return Check(name, "pass", "the frozen row and the majority class")
    return (
        Check(name, "pass", "the frozen row; there is no majority class where there are no class labels")
        if (not labelled)
        else Check(name, "warn", "the frozen row, without the majority class")
    )


def _told(record: CellRecord) -> bool:
    return record.get("conditions") is not None


def _of(record: CellRecord) -> Conditions:
    found = record.get("conditions")
    assert found is not None
    return found


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _by_seed(records: Sequence[CellRecord]) -> Mapping[int, list[CellRecord]]:
    found: dict[int, list[CellRecord]] = {}
    for record in records:
        found.setdefault(record["seed"], []).append(record)
    return dict(sorted(found.items()))


def _per_seed(name: str, records: Sequence[CellRecord], value: Callable[[CellRecord], str | None]) -> Check:
    by_seed: dict[int, dict[str, list[str]]] = {}
    for record in records:
        text = value(record)
        if text is not None:
            by_seed.setdefault(record["seed"], {}).setdefault(text, []).append(record["arm"])
    if not by_seed:
        return none(name, "not recorded")
    for seed, found in sorted(by_seed.items()):
        if len(found) > 1:
            told = "; ".join(f"{text[:12]} in {', '.join(dict.fromkeys(arms))}" for text, arms in found.items())
            return Check(name, "fail", f"arms differ on seed {seed}: {told}")
    shown = ", ".join(f"{seed}: {next(iter(found))[:8]}" for seed, found in sorted(by_seed.items()))
    return Check(name, "pass", f"equal in every arm of a seed ({shown})")
