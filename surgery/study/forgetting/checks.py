"""Does the probe measure forgetting, and were arms compared at equal learning? Lines of the checklist."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.study.audit import Check
from surgery.study.forgetting.arms import ArmForgetting, Forgotten
from surgery.study.record import CellRecord, Lost, Majority
from surgery.study.spec import StudySpec

__all__ = ["FEW_RUNS", "probe_checks"]

FEW_RUNS = 0.05
"""Share of the probe's runs of words that may stand in the task's rows: phrases that a language has anyway."""

_APART = "forgetting probe apart from the task"
_MEASURES = "forgetting probe measures forgetting"
_EQUAL = "forgetting at equal learning"


def probe_checks(study: StudySpec, final: Sequence[CellRecord], found: Forgotten | None) -> tuple[Check, ...]:
    """Return the checks of a study that asks for forgetting. None of them blocks a verdict about the task."""
    if study.forgetting is None:
        return ()
    lost = next((lost for record in final if (lost := record["forgetting"]) and "shared" in lost), None)
    if lost is None:
        return tuple(Check(name, "none", "not recorded", blocks=False) for name in (_APART, _MEASURES, _EQUAL))
    majority = next((record["majority"] for record in final if record["majority"]), None)
    return (_apart(lost), _measures(lost, found), _equal(found, majority))


def _apart(lost: Lost) -> Check:
    shared = lost["shared"]
    share = shared["shared_runs"] / max(shared["runs"], 1)
    told = (
        f"{shared['shared_texts']:,} of its {shared['texts']:,} texts stand in the task's rows, "
        f"and {100 * share:.2g} % of its runs of 8 words"
    )
    if shared["shared_texts"]:
        return Check(_APART, "fail", f"{told}: what was trained on is not forgotten; choose other text", blocks=False)
    status = "warn" if share > FEW_RUNS else "pass"
    return Check(_APART, status, told, blocks=False)  # type: ignore[arg-type]


def _measures(lost: Lost, found: Forgotten | None) -> Check:
    probe, before = lost["probe"], lost["before"]
    if before is None:
        return Check(_MEASURES, "fail", "the base has no finite score", blocks=False)
    base = f"the base's {probe['score']} is {before:.3f}"
    chance = probe["chance"]
    if chance is not None:
        base += f" (chance: {chance:.3f})"
    moved = [one for one in found.arms if one.moved_up] if found else []
    if moved:
        told = ", ".join(f"{one.label} {_better(one)}" for one in moved)
        what = f"moved up: training improves it ({told} {probe['unit']}), so it does not measure forgetting; {base}"
        return Check(_MEASURES, "warn", what, blocks=False)
    knows_nothing = chance is not None and (before <= chance if probe["greater_is_better"] else before >= chance)
    if knows_nothing:
        return Check(_MEASURES, "warn", f"{base}: there is nothing to forget", blocks=False)
    if found is None:
        return Check(
            _MEASURES,
            "warn",
            f"{base}; a run of the reference has no finite score, or an earlier version made it",
            blocks=False,
        )
    return Check(_MEASURES, "pass", f"{base}, and no arm is better after training", blocks=False)


def _better(one: ArmForgetting) -> str:
    low, high = -one.forgotten.interval.high, -one.forgotten.interval.low
    return f"by {-one.forgotten.difference:.3f} [{low:.3f}, {high:.3f}]"


def _equal(found: Forgotten | None, majority: Majority | None) -> Check:
    out = dict(found.left_out) if found else {}
    told = "; ".join(f"{label}: {why}" for label, why in out.items())
    matched = [one for one in found.arms if one.matched is not None] if found else []
    if found is None or not matched:
        return Check(_EQUAL, "none", told or "nothing to match", blocks=False)
    level = matched[0].matched.level if matched[0].matched else 0.0
    where = f"where every arm has a validation {found.metric} of {level:.3f}"
    at_once = [one.label for one in matched if one.matched is not None and one.matched.t == 0]
    if at_once:
        what = f"{where}; {', '.join(at_once)} reaches that with the base's body, so nothing was compared"
        return Check(_EQUAL, "warn", what, blocks=False)
    if found.is_trivial(level, majority["test"].get(found.metric) if majority else None):
        what = f"{where}, which always answering the most frequent class reaches: too little was learned to compare"
        return Check(_EQUAL, "warn", what, blocks=False)
    return Check(_EQUAL, "warn" if out else "pass", f"{where}{f'; without {told}' if out else ''}", blocks=False)
