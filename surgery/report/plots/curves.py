"""Validation loss while training, with a band over seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from surgery.report.plots.drawing import Drawing, Looks, plain, sample
from surgery.study import Comparison
from surgery.study.record import CellRecord
from surgery.study.statistics import across_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["loss_curves"]

_FEW_SEEDS = 5


def loss_curves(comparison: Comparison, looks: Looks) -> Drawing | None:
    """Return one line for each trained arm."""
    summary = comparison.summary
    lines = {
        row.arm: line
        for row in summary.rows
        if (line := _line([record for record in comparison.records if _is_final(record, row.arm)])) is not None
    }
    if not lines:
        return None
    seeds = len(summary.seeds)
    band = "" if seeds == 1 else f"Band: {'range' if seeds < _FEW_SEEDS else '95 % interval of the mean'} over seeds. "
    ends = "; ".join(f"{summary.row(arm).label} ends at {mean[-1]:.3f} nats" for arm, (_, mean, _, _) in lines.items())

    def draw(axes: Axes) -> None:
        for arm, (steps, mean, low, high) in lines.items():
            look = looks[arm]
            axes.fill_between(steps, low, high, color=look.colour, alpha=0.16, linewidth=0)
            axes.plot(steps, mean, color=look.colour, linestyle=look.dash, label=plain(summary.row(arm).label))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("validation loss [nats]")
        axes.set_xlim(left=0)
        axes.legend(loc="upper right")

    return Drawing(
        "curves",
        "Validation loss while training",
        f"Mean over seeds, at the chosen learning rates. {band}{sample(summary, items=False)}",
        ends,
        draw,
    )


def _is_final(record: CellRecord, arm: str) -> bool:
    return record["arm"] == arm and record["phase"] == "final" and bool(record["curve"])


_Array = NDArray[np.float64]


def _line(runs: list[CellRecord]) -> tuple[_Array, _Array, _Array, _Array] | None:
    """Return steps, mean, low and high over the seeds at the steps that every run measured."""
    by_step = [
        {point["step"]: point["validation_loss"] for point in run["curve"] if point["validation_loss"] is not None}
        for run in runs
    ]
    steps = sorted(set.intersection(*(set(run) for run in by_step))) if by_step else []
    if len(steps) < 2:
        return None
    values = np.array([[run[step] for step in steps] for run in by_step], dtype=np.float64)
    low, high = values.min(axis=0), values.max(axis=0)
    if len(values) >= _FEW_SEEDS:
        intervals = [across_seeds(column.tolist()).interval for column in values.T]
        low = np.array([interval.low if interval else np.nan for interval in intervals])
        high = np.array([interval.high if interval else np.nan for interval in intervals])
    return np.array(steps, dtype=np.float64), values.mean(axis=0), low, high
