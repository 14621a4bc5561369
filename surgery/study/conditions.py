"""The conditions of a run, as far as arms must share them: dropout, decay, clipping, splits, and when it was scored."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from surgery.errors import DataError

if TYPE_CHECKING:
    from surgery.training import FitResult, Session
    from surgery.training.table import Row

__all__ = ["Conditions", "GroupFact", "conditions", "refuse_one_split_twice"]


class GroupFact(TypedDict):
    """One group of the optimizer: how many numbers, how fast, and how much they decay."""

    name: str
    parameters: int
    learning_rate: float
    weight_decay: float


class Conditions(TypedDict):
    """What a run was trained under.

    `dropout` is the base's, in words. `scales` and `adapter_dropout` are those that the options of the plan's adapters
    name, without repetition. `gradient_norm` is that of the first step, before clipping; `clipped` the share of steps
    that were. `scored_at` is the step after which the test split was read. `order` holds hashes of the first 1, 2, 4,
    ... examples. `shared_rows` counts, for two splits, the rows of the second one whose text is in the first one, too;
    `rows` counts all rows of each.
    """

    dropout: str
    adapter_dropout: list[float]
    scales: list[float]
    groups: list[GroupFact]
    max_grad_norm: float | None
    gradient_norm: float | None
    clipped: float | None
    scored_at: int
    order: list[str]
    shared_rows: dict[str, int]
    rows: dict[str, int]


def conditions(session: Session, result: FitResult) -> Conditions:
    """Return the conditions of a run that has just ended; its operation may still be on the model."""
    training = session.spec.training
    assert training is not None
    limit, norms = training.max_grad_norm, [norm for norm in result.clip_norms if math.isfinite(norm)]
    return Conditions(
        dropout=_base_dropout(session.model),
        adapter_dropout=_named(session, "dropout"),
        scales=_named(session, "scale"),
        groups=[
            GroupFact(
                name=group.name,
                parameters=group.parameters,
                learning_rate=group.learning_rate,
                weight_decay=group.weight_decay,
            )
            for group in result.groups
        ],
        max_grad_norm=limit,
        gradient_norm=norms[0] if norms else None,
        clipped=sum(norm > limit for norm in norms) / len(norms) if limit and norms else None,
        scored_at=result.updates,
        order=list(result.order_prefixes),
        shared_rows=_shared_rows(session),
        rows={split: len(table) for split, table in session.tables.items()},
    )


def refuse_one_split_twice(session: Session) -> None:
    """Refuse data in which two splits are the same rows: hours of training would end without a verdict.

    Raises:
        DataError: which two, and what each is for.
    """
    digests = {name: session.hashes[f"data.{name}"] for name in session.tables}
    for one, other in combinations(digests, 2):
        if digests[one] == digests[other]:
            raise DataError(
                f"the {one} split and the {other} split hold the same {len(session.tables[one]):,} rows",
                f"data.{other}",
                "validation chooses learning rates and the test is read once at the end: name rows of its own for each",
            )


def _base_dropout(model: Any) -> str:
    """Return the base's dropout in words: what its modules say, and what its configuration says to its functions."""
    from torch import nn

    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    counts = Counter(
        module.p
        for name, module in model.named_modules()
        if isinstance(module, kinds) and "surgery" not in name.split(".")
    )
    config = model.config.to_dict() if hasattr(model.config, "to_dict") else {}
    named = {
        key: value
        for key, value in config.items()
        if ("drop" in key or "pdrop" in key) and isinstance(value, int | float) and not isinstance(value, bool)
    }
    modules = [f"{p:g} in {count} modules" for p, count in sorted(counts.items())] or ["no dropout modules"]
    return ", ".join([*modules, *(f"{key} {value:g}" for key, value in sorted(named.items()))])


def _named(session: Session, option: str) -> list[float]:
    found = {getattr(edit.options, option, None) for edit in session.plan.edits}
    return sorted(float(value) for value in found if isinstance(value, int | float) and not isinstance(value, bool))


def _shared_rows(session: Session) -> dict[str, int]:
    """Return `first & second` -> rows of the second split whose text the first one has; counted once a session."""
    cached: dict[str, int] | None = session.cache.get("shared rows")
    if cached is None:
        texts = {split: [_text(row) for row in table] for split, table in session.tables.items()}
        cached = {
            f"{one} & {other}": sum(text in known for text in texts[other])
            for one, other in combinations(texts, 2)
            if (known := frozenset(texts[one])) is not None
        }
        session.cache["shared rows"] = cached
    return dict(cached)


def _text(row: Row) -> str:
    """Return a row without its label: the same text with another label has been seen all the same."""
    seen = {key: value for key, value in row.items() if key != "label"}
    return json.dumps(seen, sort_keys=True, ensure_ascii=False, default=str)
