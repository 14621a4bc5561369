"""The study as one table of text, for a terminal."""

from __future__ import annotations

from surgery.planning.render import human_bytes
from surgery.study.record import memory_total
from surgery.study.summary import Row, Summary
from surgery.study.words import Unit, unit_of

__all__ = ["overview"]


def overview(summary: Summary) -> str:
    """Return one line for each arm: what it trains, how it fares, what it costs, and a line that explains ±.

    The report says the rest.
    """
    unit = unit_of(summary.metric["name"])
    of = "%" if unit.name == "pt" else unit.name
    metric = f"{summary.metric['name']} [{of}]" if of else summary.metric["name"]
    forgets = (f"forgetting [{summary.probe_unit}]",) if any(row.forgetting for row in summary.rows) else ()
    costs = ("CPU ms/step" if summary.clock == "cpu" else "ms/step", "memory", "checkpoint", "bits changed")
    titles = ("arm", "trains", "rate", metric, "difference, 95 %", "verdict", *forgets, *costs)
    lines = [titles, *(_cells(summary, row, unit) for row in summary.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    is_spread = any(row.test and row.test.interval for row in summary.rows)
    return "\n".join([*table, *(("\N{PLUS-MINUS SIGN}: half of the 95 % interval over seeds",) if is_spread else ())])


def _cells(summary: Summary, row: Row, unit: Unit) -> tuple[str, ...]:
    trains = "-" if row.adapter is None else f"{row.adapter + (row.head or 0):,}"
    forgets = [_forgetting(row)] if any(other.forgetting for other in summary.rows) else []
    seconds = row.step_cpu if summary.clock == "cpu" else row.step
    return (
        row.label,
        trains,
        "-" if row.rate is None else f"{row.rate:g}",
        "-" if row.test is None else _spread(row, unit),
        _difference(summary, row, unit),
        _verdict(row),
        *forgets,
        "-" if seconds is None else f"{1000 * seconds:.0f}",
        "-" if row.memory is None else human_bytes(memory_total(row.memory)),
        "-" if row.checkpoint_bytes is None else human_bytes(row.checkpoint_bytes),
        "-" if row.differ is None else f"{row.differ:,}",
    )


def _verdict(row: Row) -> str:
    if row.verdict is None:
        return "-"
    return f"{row.verdict.word} (indicative)" if row.verdict.indicative else row.verdict.word


def _spread(row: Row, unit: Unit) -> str:
    assert row.test is not None
    interval = row.test.interval
    middle = unit.value(row.test.mean)
    return middle if interval is None else f"{middle} ± {unit.value((interval.high - interval.low) / 2)}"


def _difference(summary: Summary, row: Row, unit: Unit) -> str:
    if row.arm == summary.reference:
        return "reference"
    if row.pair is None or row.interval is None:
        return "-"
    return f"{unit.signed(row.pair.difference)} {unit.interval(row.interval)}"


def _forgetting(row: Row) -> str:
    return "-" if row.forgetting is None else f"{row.forgetting.mean:+.3f}".replace("-", "\N{MINUS SIGN}")
