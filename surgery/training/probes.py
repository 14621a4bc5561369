"""Probes: what a base model can do apart from its task, measured again and again on the same items."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from surgery.errors import DataError, Problem
from surgery.spec import DataSpec
from surgery.training.data import columns_of, load_data
from surgery.training.evaluation import evaluate
from surgery.training.positions import most_positions
from surgery.training.session import Session
from surgery.training.table import Table
from surgery.training.tokens import known_tokens

__all__ = ["MASK_RATE", "MAX_LENGTH", "LossProbe", "Probe", "ProbeKind", "Reading", "encoded", "make_probe"]

ProbeKind: TypeAlias = Literal["loss", "masked-lm", "retrieval"]
MASK_RATE = 0.15
MAX_LENGTH = 128
"""Tokens after which a probe's text is cut, where the model takes as many and nothing else is said."""

_MOST_PROBLEMS = 10


@dataclass(frozen=True)
class Reading:
    """One measurement.

    Attributes:
        score: sum(values) / sum(weights).
        values, weights: of each item, (items,), float64; the weights are the same in every reading of a probe.
    """

    score: float
    values: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Probe(ABC):
    """Measures a session's model on items that have nothing to do with the session's task. Draws nothing.

    Attributes:
        texts: every text of it, as read.
        passes: examples that the model sees in one measurement.
        chance: what a model that knows nothing scores.
        why: why this kind was taken; empty where it was asked for.
    """

    kind: ClassVar[ProbeKind]
    score_name: ClassVar[str]
    unit: ClassVar[str]
    greater_is_better: ClassVar[bool]
    texts: tuple[str, ...]
    passes: int
    chance: float
    why: str

    @abstractmethod
    def measure(self, session: Session) -> Reading:
        """Return what the session's model, as it is now, scores."""


@dataclass(frozen=True)
class LossProbe(Probe):
    """The task's own loss on other rows, nats for each predicted unit."""

    kind: ClassVar[ProbeKind] = "loss"
    score_name: ClassVar[str] = "loss"
    unit: ClassVar[str] = "nats"
    greater_is_better: ClassVar[bool] = False
    examples: list[dict[str, Any]] = field(repr=False)
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def measure(self, session: Session) -> Reading:
        known = replace(session, examples={"known": self.examples}, cache=self.cache)
        found = evaluate(known, "known")
        return Reading(found.metrics["loss"], found.items["loss"], found.items["units"].astype(np.float64))


def make_probe(
    session: Session,
    data: DataSpec,
    kind: ProbeKind | None = None,
    *,
    mask_rate: float | None = None,
    max_length: int | None = None,
) -> Probe:
    """Return the probe of `kind` on the rows of `data`: its test split, or else validation, or else training rows.

    Without a kind: rows of `query` and `passage` are retrieved, rows that the task can read (its label included) give
    the task's loss, and other texts the loss of the checkpoint's masked-LM head. A language model has its own loss.

    Args:
        session: model, tokenizer and task. No operation may be active.
        data: where the rows come from.
        kind: which probe.
        mask_rate: share of the tokens that `masked-lm` hides.
        max_length: tokens after which `masked-lm` and `retrieval` cut a text.

    Raises:
        DataError: rows that the probe cannot use, or no probe fits, with what to write.
    """
    from surgery.training.masked import masked_probe
    from surgery.training.retrieval import retrieval_probe

    why = ""
    if kind is None:
        kind, why = _chosen(session, data)
    if kind == "loss":
        return _loss_probe(session, data, why)
    most = most_positions(session.model)
    length = max_length or min(MAX_LENGTH, most or MAX_LENGTH)
    if most is not None and length > most:
        what = f"max_length is {length} tokens, the model takes {most}"
        raise DataError(what, "forgetting.max_length", f"write max_length: {most} under forgetting:")
    if kind == "retrieval":
        rows = _rows(session, data, {"query": "query", "passage": "passage"})
        return retrieval_probe(session, rows, length, why)
    return masked_probe(session, _rows(session, data, {"text": "text"}), length, mask_rate or MASK_RATE, why)


def _chosen(session: Session, data: DataSpec) -> tuple[ProbeKind, str]:
    """Return which probe the rows and the model call for, and why."""
    from surgery.training.masked import masked_model

    if not session.labels:
        return "loss", f"{session.task.name} is a language model's own task"
    columns = columns_of(data, session.registry)
    if {"query", "passage"} <= columns:
        return "retrieval", "the rows hold query and passage"
    if {name for name, default in session.task.columns.items() if default} <= columns:
        return "loss", "the rows hold what the task reads, label included"
    if masked_model(session) is not None:
        return "masked-lm", "the checkpoint holds a masked-LM head"
    what = f"no probe fits: {session.source} holds no masked-LM head, and the rows no query and passage"
    hint = "give rows with a query and the passage that answers it: the probe then is retrieval"
    raise DataError(what, "forgetting.data", hint)


def _rows(session: Session, data: DataSpec, columns: Mapping[str, str]) -> Table:
    """Return the probe's rows: the test split, or else validation, which is held out where there is training only.

    Raises:
        DataError: also where a value is no text.
    """
    loaded = load_data(data, columns, session.registry, trains=False)
    table = loaded.splits["test" if "test" in loaded.splits else "validation"]
    problems: list[Problem] = []
    for index, row in enumerate(table):
        for name, value in row.items():
            if not isinstance(value, str) or not value.strip():
                kind = "is empty" if isinstance(value, str) else f"must be text, not {type(value).__name__}"
                hint = "every row of the probe needs one; is the column the right one?"
                problems.append(Problem(f"the {name} {kind}", table.where(index), hint))
        if len(problems) >= _MOST_PROBLEMS:
            break
    if problems:
        raise DataError.of(problems)
    return table


def _loss_probe(session: Session, data: DataSpec, why: str) -> LossProbe:
    loaded = load_data(data, session.task.columns, session.registry, trains=False)
    table = loaded.splits["test" if "test" in loaded.splits else "validation"]
    try:
        examples = session.task.encode(table, session.tokenizer, session.labels, session.options, table.where)
    except DataError as error:
        hint = "these are rows of forgetting.data, read as the task's; write probe: masked-lm for texts without labels"
        told = [Problem(one.what, one.where, f"{one.hint}; {hint}" if one.hint else hint) for one in error.problems]
        raise DataError.of(told if session.labels else error.problems) from None
    texts = tuple(str(value) for row in table for name, value in row.items() if name != "label")
    choices = len(session.labels) or known_tokens(session.model) or len(session.tokenizer)
    return LossProbe(texts, len(examples), math.log(choices), why, examples)


def encoded(
    session: Session, texts: Sequence[str], length: int, where: Callable[[int], str], **options: Any
) -> list[dict[str, Any]]:
    """Return the tokens of each text, cut after `length`, as the model takes them.

    Raises:
        DataError: a text of which the tokenizer leaves nothing.
    """
    found = session.tokenizer(list(texts), truncation=True, max_length=length, verbose=False, **options)
    examples = [{key: found[key][index] for key in found} for index in range(len(texts))]
    for index, example in enumerate(examples):
        if not example["input_ids"]:
            raise DataError("the tokenizer leaves nothing of the text", where(index), "remove the row")
    return examples
