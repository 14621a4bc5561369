"""What training changed in the weights: measured in a run's own operation, told per arm as medians over matrices."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.operation import Operation
    from surgery.spectra import Directions
    from surgery.study.record import CellRecord

__all__ = ["FIGURES", "changed_weights", "measured", "weight_medians"]

_LEFT_OUT = ("embedding.", "head.")
"""Tables and heads: the first are looked up and not multiplied with, the second begin anew in every run."""

FIGURES: Mapping[str, str] = {
    "stable_rank": "stable rank",
    "entropy_rank": "entropy rank",
    "rank_for_energy": "rank for 90 %",
    "top_ratio": "s1(dW) / s1(W)",
    "intruders": "intruders of 10",
    "intruder_energy": "their energy",
}
"""Figures of a change that its control has, too -> what they are called."""


def changed_weights(operation: Operation, count: int) -> tuple[list[dict[str, Any]], dict[str, Directions]]:
    """Return what the adapters of `operation` changed in every matrix outside of tables and heads, as JSON values.

    With it come the `count` leading directions of each change. One base is in memory; every tuned matrix is made from
    it, and let go, in turn.
    """
    from surgery.operation.attach import alike_everywhere
    from surgery.spectra import directions, matrices_of_operation, measure

    changes, found = [], {}
    with alike_everywhere():  # decompositions end in other bits on other numbers of threads
        for one in matrices_of_operation(operation):
            change = None if one.site.role.startswith(_LEFT_OUT) else measure(one)
            if change is not None:
                changes.append(change.to_dict())
                found.update(directions([one], count))
    return changes, found


def measured(records: Sequence[CellRecord]) -> Iterator[tuple[CellRecord, Mapping[str, Any]]]:
    """Yield (run, matrix) for every matrix that was looked at."""
    for record in records:
        for matrix in record.get("weights") or ():
            yield record, matrix


def weight_medians(records: Sequence[CellRecord]) -> dict[str, dict[str, float | int | None]]:
    """Return arm -> medians over its matrices (and seeds, where several were looked at), with those of the controls."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    seeds: dict[str, set[int]] = {}
    for record, matrix in measured(records):
        by_arm.setdefault(record["arm"], []).append(matrix)
        seeds.setdefault(record["arm"], set()).add(record["seed"])
    table: dict[str, dict[str, float | int | None]] = {}
    for arm, matrices in by_arm.items():
        row: dict[str, float | int | None] = {
            "matrices": len(matrices) // len(seeds[arm]),
            "seeds": len(seeds[arm]),
            "relative_norm": _median([one["relative_norm"] for one in matrices]),
            "rank": _median([one["rank"] for one in matrices]),
        }
        for figure in FIGURES:
            for prefix, which in (("", "found"), ("random_", "control")):
                row[f"{prefix}{figure}"] = _median([one[which][figure] for one in matrices])
        table[arm] = row
    return table


def _median(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.median(finite) if finite else None
