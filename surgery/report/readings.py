"""The table of losses at equal steps, tokens, work and seconds, read from the curves where the summary holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.report import numbers
from surgery.report.palette import Look
from surgery.report.table import Cell, TableRow
from surgery.study import Summary

__all__ = ["EqualBudgets", "equal_budgets"]

_TOLD: Mapping[str, Callable[[float], str]] = {
    "steps": lambda amount: f"{amount:,.4g} steps",
    "tokens": lambda amount: f"{numbers.short(amount)} tokens",
    "flops": numbers.work,
    "seconds": lambda amount: f"{amount:,.3g} s",
}


@dataclass(frozen=True, slots=True)
class EqualBudgets:
    """The section: no rows where the study's files hold no readings."""

    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    caption: str


def equal_budgets(readings: Sequence[Any], summary: Summary, looks: Mapping[str, Look]) -> EqualBudgets:
    """Return one row for each arm and one column for each axis.

    Args:
        readings: objects with `arm`, `axis`, `amount`, `step`, `loss`, `coarse` and `unfinished`.
        summary: of the study.
        looks: arm -> how it is drawn.
    """
    amounts = {reading.axis: reading.amount for reading in readings}
    by_place = {(reading.arm, reading.axis): reading for reading in readings}
    arms = [row for row in summary.rows if any(reading.arm == row.arm for reading in readings)]
    rows = tuple(
        TableRow(row.label, row.kind, looks[row.arm].css, "", "",
                 tuple(_cell(by_place.get((row.arm, axis))) for axis in amounts))
        for row in arms
    )  # fmt: skip
    columns = tuple(f"at {_TOLD.get(axis, str)(amount)}" for axis, amount in amounts.items())
    return EqualBudgets(
        columns,
        rows,
        "Validation loss in nats when every arm had had as much as the one that had least of it, read from the same "
        "curves between the points that were measured. “Coarse”: those lie far apart. “Mid-schedule”: its learning "
        f"rate had some way to go; a run of just that length may end lower. S = {len(summary.seeds)} seeds.",
    )


def _cell(reading: Any) -> Cell:
    if reading is None or reading.loss is None:
        return Cell(numbers.MISSING)
    marks = (("coarse",) if reading.coarse else ()) + (("mid-schedule",) if reading.unfinished else ())
    return Cell(numbers.loss(reading.loss), (f"after {reading.step:,.4g} steps",), marks)
