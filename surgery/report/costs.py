"""The table of costs: what was measured, and below it what was predicted."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.planning.cost import human_flops
from surgery.report import numbers
from surgery.report.palette import Look
from surgery.report.table import Cell, TableRow
from surgery.study import Row, Summary
from surgery.study.predicted import COMPONENTS, FAR
from surgery.study.turns import Spread

__all__ = ["Costs", "costs"]

_FAR = "far off"


@dataclass(frozen=True, slots=True)
class Costs:
    """The section: its table, what stands below, and a line for every arm whose prediction is far off."""

    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    caption: str
    warnings: tuple[str, ...]


def costs(summary: Summary, looks: dict[str, Look]) -> Costs:
    """Return the section; without rows where the study's files say nothing of costs."""
    rows = [row for row in summary.rows if row.kind != "majority" and (row.cost or row.clock)]
    peak = ("GPU peak",) if any(row.device_peak for row in rows) else ()
    columns = (
        "forward", "backward", *COMPONENTS, *peak, "step [ms]", "CPU of a step [ms]", "base [ms]", "unmerged [ms]",
        "merged [ms]",
    )  # fmt: skip
    told = tuple(TableRow(row.label, row.kind, looks[row.arm].css, "", "", _cells(row, bool(peak))) for row in rows)
    warnings = tuple(
        f"{row.label}: {', '.join(row.apart)} predicted more than {FAR * 100:.0f} % off what was measured"
        for row in rows
        if row.apart
    )
    return Costs(columns, told, _caption(rows), warnings)


def _cells(row: Row, has_peak: bool) -> tuple[Cell, ...]:
    clock = row.clock
    peak = (Cell(numbers.size(row.device_peak)),) if has_peak else ()
    times = (None,) * 5
    if clock is not None:
        times = (clock.step, clock.step_cpu, clock.base, clock.unmerged, clock.merged)  # type: ignore[assignment]
    return (*_work(row), *_memory(row), *peak, *(_time(spread) for spread in times))


def _work(row: Row) -> tuple[Cell, ...]:
    cost = row.cost
    if cost is None:
        return Cell(numbers.MISSING), Cell(numbers.MISSING)
    told = cost["predicted"]
    return (
        _pair("forward", human_flops(cost["forward"]), _flops(told["forward"]), row),
        _pair("backward", human_flops(cost["backward"]), _flops(told["backward"]), row),
    )


def _memory(row: Row) -> tuple[Cell, ...]:
    if row.memory is None:
        return tuple(Cell(numbers.MISSING) for _ in COMPONENTS)
    memory = row.memory
    measured = (memory["weights"], memory["gradients"], memory["optimizer"], memory["activations"])
    if row.cost is None:
        return tuple(Cell(numbers.size(value)) for value in measured)
    told = row.cost["predicted"]
    predicted = (told["weights"], told["gradients"], told["optimizer"], told["activations"])
    return tuple(
        _pair(name, numbers.size(found), None if value is None else numbers.size(value), row)
        for name, found, value in zip(COMPONENTS, measured, predicted, strict=True)
    )


def _pair(name: str, measured: str, predicted: str | None, row: Row) -> Cell:
    note = "not predicted" if predicted is None else f"predicted {predicted}"
    return Cell(measured, (note,), (_FAR,) if name in row.apart else ())


def _flops(work: int | None) -> str | None:
    return None if work is None else human_flops(work)


def _time(spread: Spread | None) -> Cell:
    if spread is None:
        return Cell(numbers.MISSING)
    quartiles = f"{numbers.milliseconds(spread.low)}{numbers.MISSING}{numbers.milliseconds(spread.high)}"
    return Cell(numbers.milliseconds(spread.median), (quartiles,))


def _caption(rows: list[Row]) -> str:
    cost = next((row.cost for row in rows if row.cost), None)
    if not rows or cost is None:
        return "The work of a step was not measured in this study."
    why = sorted({row.cost["predicted"]["why"] for row in rows if row.cost} - {""})
    unknown = f" Not predicted: {'; '.join(why)}." if why else ""
    clocks = {row.clock.step.count for row in rows if row.clock and row.clock.step}
    turns = (
        f" Times: median and quartiles of {min(clocks)} to {max(clocks)} steps, and of forward passes of one example, "
        "in four turns, there and back again (A B C, C B A), when nothing else of the study ran."
        if clocks
        else " Times were not taken in turns."
    )
    return (
        f"The first batch of one run of each arm, {cost['examples']} examples of {cost['length']} tokens: matrix "
        "products by PyTorch's counter, bytes from the tensors themselves, activations as kept for the backward pass. "
        f"“Predicted”: by the cost model, from the plan and the configuration alone.{unknown}{turns}"
    )
