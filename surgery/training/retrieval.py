"""The retrieval probe: whether each query still finds its own passage among all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from surgery.errors import DataError, Problem
from surgery.training.collate import length as length_of
from surgery.training.evaluation import inference
from surgery.training.probes import Probe, ProbeKind, Reading, encoded
from surgery.training.session import Session
from surgery.training.table import Table

__all__ = ["RetrievalProbe", "reciprocal_ranks", "retrieval_probe"]

_FEWEST = 2
_DIGITS = 10  # of a cosine; equal vectors may differ in the last ones by where they stand in the product
_MOST_PROBLEMS = 10


@dataclass(frozen=True)
class RetrievalProbe(Probe):
    """Mean reciprocal rank of the right passage, by cosine of mean-pooled last hidden states."""

    kind: ClassVar[ProbeKind] = "retrieval"
    score_name: ClassVar[str] = "MRR"
    unit: ClassVar[str] = "MRR"
    greater_is_better: ClassVar[bool] = True
    queries: list[dict[str, Any]] = field(repr=False)
    passages: list[dict[str, Any]] = field(repr=False)

    def measure(self, session: Session) -> Reading:
        vectors = _pooled(session, [*self.queries, *self.passages])
        count = len(self.queries)
        ranks = reciprocal_ranks(vectors[:count], vectors[count:])
        return Reading(float(ranks.mean()), ranks, np.ones(count))


def reciprocal_ranks(queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """Return 1 / rank of passage i for query i, by cosine, for every i.

    A passage that lies as near as the right one (to ten digits) counts as half before it: a model that finds all
    texts alike is not at the top.

    Args:
        queries, passages: (items, width), one row for each; float64.

    Returns:
        (items,); NaN for an item whose vectors are not finite.
    """
    # torch's product: its order of sums follows torch's threads, which a study sets.
    product = torch.from_numpy(_unit(queries)) @ torch.from_numpy(_unit(passages)).T
    near = np.round(product.numpy(), _DIGITS)
    own = np.diagonal(near)[:, None]
    before = (near > own).sum(axis=1)
    level = (near == own).sum(axis=1) - 1
    return np.where(np.isfinite(near).all(axis=1), 1.0 / (1.0 + before + level / 2), np.nan)


def retrieval_probe(session: Session, table: Table, length: int, why: str) -> RetrievalProbe:
    """Return the probe on the pairs of `table`.

    Raises:
        DataError: fewer than two pairs, a query or passage that occurs twice, or a model of two stacks.
    """
    if len(table) < _FEWEST:
        raise DataError("one pair cannot be missed", table.origin, "give a few hundred pairs")
    if getattr(session.model.config, "is_encoder_decoder", False):
        raise DataError("retrieval reads one stack, and the model has two", "forgetting.probe", "write probe: loss")
    _refuse_doubles(table)
    sides = [[row[name] for row in table] for name in ("query", "passage")]
    queries, passages = (encoded(session, texts, length, table.where) for texts in sides)
    texts = tuple(text for side in sides for text in side)
    count = len(table)
    chance = sum(1 / rank for rank in range(1, count + 1)) / count
    return RetrievalProbe(texts, 2 * count, chance, why, queries, passages)


def _refuse_doubles(table: Table) -> None:
    problems: list[Problem] = []
    for name in ("query", "passage"):
        first: dict[str, int] = {}
        for index, row in enumerate(table):
            text = " ".join(row[name].split())
            if text in first:
                what = f"the {name} also stands in {table.where(first[text])}: which passage is right?"
                problems.append(Problem(what, table.where(index), "remove one of the rows"))
            first.setdefault(text, index)
    if problems:
        raise DataError.of(problems[:_MOST_PROBLEMS])


def _pooled(session: Session, examples: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the mean of each text's last hidden states over its tokens, float64."""
    body, size = session.model.base_model, session.evaluation_batch_size
    order = sorted(range(len(examples)), key=lambda index: (length_of(examples[index]), index))
    found: dict[int, np.ndarray] = {}
    with inference(session, body):
        device = next(body.parameters()).device
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = {key: value.to(device) for key, value in session.collator([examples[i] for i in chosen]).items()}
            states = body(**batch).last_hidden_state.double()
            tokens = torch.tensor([[length_of(examples[index])] for index in chosen], device=device)
            inside = torch.arange(states.shape[1], device=device) < tokens
            pooled = torch.where(inside.unsqueeze(-1), states, 0.0).sum(dim=1) / tokens
            found.update(zip(chosen, pooled.cpu().numpy(), strict=True))
    return np.stack([found[index] for index in range(len(examples))])


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)
