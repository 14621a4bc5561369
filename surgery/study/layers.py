"""What changed in the weights, by layer and module, and the singular values of a few matrices."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.study.record import CellRecord
from surgery.study.weights import measured

__all__ = ["LayerChange", "SingularValue", "layer_changes", "singular_values"]


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Medians over the matrices of one module of one layer (experts, seeds).

    Attributes:
        arm, stack, layer, role: which; layer is None outside of layers.
        matrices: how many.
        relative_norm: |dW| / |W|; None where W is zero.
        entropy_rank, random_entropy_rank: of dW, and of a random change of the same norm and rank.
    """

    arm: str
    stack: str
    layer: int | None
    role: str
    matrices: int
    relative_norm: float | None
    entropy_rank: float | None
    random_entropy_rank: float | None


@dataclass(frozen=True, slots=True)
class SingularValue:
    """One singular value of dW of one matrix, on one seed, and that of the random change beside it."""

    arm: str
    seed: int
    matrix: str
    role: str
    layer: int | None
    index: int
    value: float
    random: float


def layer_changes(records: Sequence[CellRecord]) -> tuple[LayerChange, ...]:
    """Return arm by arm, in the order of the model's own sites, what changed where."""
    found: dict[tuple[str, str, int | None, str], list[Mapping[str, Any]]] = {}
    for record, matrix in measured(records):
        key = (record["arm"], matrix["stack"], matrix["layer"], matrix["role"])
        found.setdefault(key, []).append(matrix)
    return tuple(
        LayerChange(
            *key,
            len(matrices),
            _median(one["relative_norm"] for one in matrices),
            _median(one["found"]["entropy_rank"] for one in matrices),
            _median(one["control"]["entropy_rank"] for one in matrices),
        )
        for key, matrices in found.items()
    )


def singular_values(records: Sequence[CellRecord]) -> tuple[SingularValue, ...]:
    """Return the leading singular values of up to three matrices: first, middle and last layer of one module.

    The module is the one that most arms changed, the first of them in the model. Only the first seed of each arm that
    was looked at is told of; records of earlier versions hold no values.
    """
    first: dict[str, int] = {}
    by_name: dict[str, list[tuple[CellRecord, Mapping[str, Any]]]] = {}
    for record, matrix in measured(records):
        if matrix.get("values") and first.setdefault(record["arm"], record["seed"]) == record["seed"]:
            by_name.setdefault(matrix["name"], []).append((record, matrix))
    return tuple(
        SingularValue(
            record["arm"], record["seed"], name, matrix["role"], matrix["layer"], index, float(value), float(random)
        )
        for name in _chosen(by_name)
        for record, matrix in by_name[name]
        for index, (value, random) in enumerate(zip(matrix["values"], matrix["control_values"], strict=False), 1)
    )


def _chosen(by_name: Mapping[str, Sequence[tuple[CellRecord, Mapping[str, Any]]]]) -> list[str]:
    if not by_name:
        return []
    most = max(map(len, by_name.values()))
    shared = {name: runs[0][1] for name, runs in by_name.items() if len(runs) == most}
    kinds = Counter((matrix["stack"], matrix["role"], matrix["expert"]) for matrix in shared.values())
    kind = max(kinds, key=lambda one: kinds[one])  # the first of the most frequent
    names = [name for name, matrix in shared.items() if (matrix["stack"], matrix["role"], matrix["expert"]) == kind]
    names.sort(key=lambda name: (shared[name]["layer"] is None, shared[name]["layer"] or 0))
    return list(dict.fromkeys((names[0], names[len(names) // 2], names[-1])))


def _median(values: Any) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.median(finite) if finite else None
