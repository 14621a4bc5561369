"""Forgetting as rows of CSV files: every measured point, and each arm where arms are equal."""

from __future__ import annotations

from typing import TypeAlias

from surgery.study.forgetting.arms import ArmForgetting, Difference, Matched
from surgery.study.summary import Summary

__all__ = ["forgetting_tables"]

Value: TypeAlias = str | int | float | bool | None


def forgetting_tables(summary: Summary) -> dict[str, list[dict[str, Value]]]:
    """Return file name (without .csv) -> rows; empty where forgetting was not measured.

    `forgetting` has one row for each arm and place: at the end, at the largest metric that every arm, or that the arm
    and the reference, reaches, and at the largest change that every arm reaches. `forgetting_points` has one for each
    run and share t.
    """
    found = summary.forgotten
    if found is None:
        return {}
    unit = found.probe["unit"].lower()
    score = found.probe["score"].lower()
    points: list[dict[str, Value]] = [
        {
            "arm": one.arm,
            "seed": point.seed,
            "t": point.t,
            f"validation_{found.metric}": point.metric,
            "validation_nats": point.loss,
            f"probe_{score}": point.score,
            f"forgotten_{unit}": point.forgotten,
            "change": point.change,
            "change_relative": point.relative,
        }
        for one in found.arms
        for point in one.points
    ]
    rows = [_row(one, "end", None, one.forgotten, one.against, unit) for one in found.arms]
    for where in ("matched", "pair", "equal_change"):
        for one in found.arms:
            there: Matched | None = getattr(one, where)
            if there is not None:
                rows.append(_row(one, where, there, there.forgotten, there.against, unit))
    return {"forgetting": rows, "forgetting_points": points}


def _row(
    one: ArmForgetting, where: str, there: Matched | None, lost: Difference, against: Difference | None, unit: str
) -> dict[str, Value]:
    is_end = there is None
    return {
        "arm": one.arm,
        "where": where,
        "level": there.level if there else None,
        "t": there.t if there else 1.0,
        "change_relative": there.relative if there else None,
        "probe_before": one.before,
        "probe_after": one.after if is_end else None,
        "first_before": one.first_before,
        "first_after": one.first_after if is_end else None,
        f"forgotten_{unit}": lost.difference,
        "forgotten_95_low": lost.interval.low,
        "forgotten_95_high": lost.interval.high,
        "against_reference": against.difference if against else None,
        "against_reference_95_low": against.interval.low if against else None,
        "against_reference_95_high": against.interval.high if against else None,
        "moved_up": one.moved_up if is_end else None,
    }
