"""Which rows belong to which split, and which of them are taken: always the same, whatever the run's seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from surgery.errors import DataError
from surgery.training.seeds import named_seed
from surgery.training.table import Table

__all__ = ["VALIDATION_SHARE", "held_out", "limited", "limits"]

VALIDATION_SHARE = 0.1
_RANGE = 2.0**63


def held_out(train: Table, anchor: str) -> tuple[Table, Table]:
    """Split `train` into (rest, validation): about 10 %, by a hash of the column `anchor`.

    Rows with the same text fall on the same side, and a row stays on its side when others are added.
    """
    scores = [_score("validation", _text(row[anchor])) for row in train]
    inside = {index for index, score in enumerate(scores) if score < VALIDATION_SHARE * _RANGE}
    if not inside or len(inside) == len(scores):
        lowest = min(scores)
        inside = {index for index, score in enumerate(scores) if score == lowest}
    if len(inside) == len(scores):
        raise DataError(
            "there is no validation split, and all training rows hold the same text",
            train.origin,
            "give a validation file, or more rows",
        )
    kept = [index for index in range(len(scores)) if index not in inside]
    return train.select(kept), train.select(sorted(inside))


def limited(table: Table, split: str, limit: int | None) -> Table:
    """Return at most `limit` rows in their own order; a smaller limit takes a subset of what a larger one takes."""
    if limit is None or limit >= len(table):
        return table
    ranked = sorted(range(len(table)), key=lambda index: (_score("limit", split, index), index))
    return table.select(sorted(ranked[:limit]))


def limits(given: Mapping[Any, int], override: Mapping[str, int] | int | None) -> Mapping[str, int]:
    """Return split -> most rows, where `override` (a number for every split, or some splits) wins."""
    if isinstance(override, int):
        return dict.fromkeys(("train", "validation", "test"), override)
    return {**given, **(override or {})}


def _score(*purpose: object) -> int:
    return named_seed("surgery", *purpose)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
