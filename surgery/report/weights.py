"""The table of what changed in the weights, arm by arm, each figure beside that of a random change of equal norm."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.report import numbers
from surgery.report.palette import looks
from surgery.study import Comparison
from surgery.study.weights import FIGURES, weight_medians

__all__ = ["WeightCell", "WeightRow", "WeightTable", "weight_table"]


@dataclass(frozen=True, slots=True)
class WeightCell:
    """A figure, and the control's; empty where there is none."""

    text: str
    control: str = ""


@dataclass(frozen=True, slots=True)
class WeightRow:
    """One arm."""

    label: str
    colour: str
    cells: tuple[WeightCell, ...]


@dataclass(frozen=True, slots=True)
class WeightTable:
    """All arms whose weights were looked at; no rows where none were."""

    columns: tuple[str, ...]
    rows: tuple[WeightRow, ...]
    caption: str


def weight_table(comparison: Comparison) -> WeightTable:
    """Return the table; an arm that changes no matrix, as bias-only, has a row that says so."""
    summary, colours = comparison.summary, looks(comparison)
    final = [record for record in comparison.records if record["phase"] == "final"]
    found = weight_medians(final)
    looked = {record["arm"] for record in final if "weights" in record}
    rows = []
    for row in summary.rows:
        if row.arm not in looked or row.kind == "frozen":
            continue
        told = found.get(row.arm)
        cells = [WeightCell("0")] + [WeightCell(numbers.MISSING)] * (len(FIGURES) + 2)
        if told is not None:
            cells = [WeightCell(_number(told["matrices"])), WeightCell(numbers.percent(told["relative_norm"]))]
            cells.append(WeightCell(_number(told["rank"])))
            for figure in FIGURES:
                shown = numbers.percent if figure == "intruder_energy" else _number
                cells.append(WeightCell(shown(told[figure]), f"random {shown(told[f'random_{figure}'])}"))
        rows.append(WeightRow(row.label, colours[row.arm].css, tuple(cells)))
    seeds = max((int(one["seeds"] or 0) for one in found.values()), default=0)
    return WeightTable(
        columns=("matrices", "|dW| / |W|", "rank", *FIGURES.values()),
        rows=tuple(rows),
        caption=(
            f"Medians over matrices that changed, tables and heads left out, on {seeds} "
            f"seed{'s' if seeds > 1 else ''}. "
            "Random: a change of the same norm, and of the same rank where that is low; a figure that it shares says "
            "nothing about training. Intruders: of the first 10 left singular vectors of the tuned weight, those whose "
            "cosine with every one of the base's is below 0.5, and their share of the tuned weight's energy "
            "(Shuttleworth et al. 2024)."
        ),
    )


def _number(value: float | None) -> str:
    return numbers.MISSING if value is None else f"{value:.3g}"
