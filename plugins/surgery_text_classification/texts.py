"""Texts and pairs of texts: checked, and encoded with what the tokenizer adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from surgery import Rows
from surgery.errors import DataError, Problem

__all__ = ["checked", "encoded"]

_MOST_PROBLEMS = 10


def checked(rows: Rows, where: Callable[[int], str], label: Callable[[Any, str], Problem | None]) -> None:
    """Raise one DataError with the first problems of `rows`, each with its place.

    `label` says what is wrong with a row's label, given the label and where it stands.
    """
    problems: list[Problem] = []
    for index, row in enumerate(rows):
        for column in ("text", "text_pair"):
            if not isinstance(row.get(column, ""), str):
                kind = type(row[column]).__name__
                hint = "every row needs a text here; is the column the right one?"
                problems.append(Problem(f"the {column} must be text, not {kind}", where(index), hint))
        if (problem := label(row["label"], where(index))) is not None:
            problems.append(problem)
        if len(problems) >= _MOST_PROBLEMS:
            break
    if problems:
        raise DataError.of(problems)


def encoded(rows: Rows, tokenizer: Any, max_length: int) -> list[Mapping[str, Any]]:
    """Return the model's inputs for each row, cut after `max_length` tokens; a pair is cut where it is longer."""
    if not rows:
        return []
    texts = [row["text"] for row in rows]
    pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
    found = tokenizer(texts, pairs, truncation=True, max_length=max_length)
    keys = [key for key in ("input_ids", "token_type_ids", "attention_mask") if key in found]
    return [{key: found[key][index] for key in keys} for index in range(len(rows))]
