"""Rows of a data set into questions: every answer found where the row says that it stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery import Rows
from surgery.errors import DataError, Problem

__all__ = ["Question", "questions"]

_MOST_PROBLEMS = 10
_NUMBER = re.compile(r"[0-9]{1,18}")
_SHAPE = 'write {"text": ["..."], "answer_start": [0]}, or name a column of texts and one of starts under data.columns'
_SHOWN = 60


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        question, context: the texts.
        references: every accepted answer.
        start, end: where the first of them stands in the context, without spaces around it.
    """

    question: str
    context: str
    references: tuple[str, ...]
    start: int
    end: int


def questions(rows: Rows, where: Callable[[int], str]) -> list[Question]:
    """Return a question for each row.

    Raises:
        DataError: the first problems, each with its row.
    """
    found: list[Question] = []
    problems: list[Problem] = []
    for index, row in enumerate(rows):
        try:
            found.append(_question(row, where(index)))
        except DataError as error:
            problems += error.problems
            if len(problems) >= _MOST_PROBLEMS:
                break
    if problems:
        raise DataError.of(problems[:_MOST_PROBLEMS])
    return found


def _question(row: Mapping[str, Any], where: str) -> Question:
    for column in ("question", "context"):
        text = row[column]
        if not isinstance(text, str):
            what = f"the {column} must be text, not {type(text).__name__}"
            raise DataError(what, where, "every row needs a text here; is the column the right one?")
        if not text.strip():
            raise DataError(f"the {column} is empty", where, "write one, or remove the row")
    context: str = row["context"]
    pairs = _answers(row, where)
    if not pairs:
        hint = "every question needs one: questions without an answer (SQuAD 2.0) are not supported, remove the row"
        raise DataError("the row has no answer", where, hint)
    spans = [_span(context, text, start, where) for text, start in pairs]
    return Question(row["question"], context, tuple(context[start:end] for start, end in spans), *spans[0])


def _answers(row: Mapping[str, Any], where: str) -> list[tuple[Any, Any]]:
    """Return (text, start) of each answer: from one column as the hub's SQuAD has it, or from two flat ones."""
    given = row["answers"]
    if "answer_start" in row:
        texts, starts = given, row["answer_start"]
    elif isinstance(given, Mapping) and {"text", "answer_start"} <= given.keys():
        texts, starts = given["text"], given["answer_start"]
    elif _is_list(given) and all(isinstance(one, Mapping) and {"text", "answer_start"} <= one.keys() for one in given):
        texts, starts = [one["text"] for one in given], [one["answer_start"] for one in given]
    else:
        raise DataError(f"the answers must have texts and starts, not be {_shown(given)}", where, _SHAPE)
    texts, starts = ([value] if not _is_list(value) else list(value) for value in (texts, starts))
    if len(texts) != len(starts):
        what = f"the row has {len(texts)} answers and {len(starts)} starts"
        raise DataError(what, where, "every answer needs the number of its first character in the context")
    return list(zip(texts, starts, strict=True))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _span(context: str, text: Any, start: Any, where: str) -> tuple[int, int]:
    if not isinstance(text, str):
        raise DataError(f"an answer must be text, not {type(text).__name__}", where, _SHAPE)
    if not text.strip():
        raise DataError("an answer is empty", where, "write one, or remove it")
    if isinstance(start, str) and _NUMBER.fullmatch(start.strip()):  # a CSV file has texts only
        start = int(start)
    if isinstance(start, bool) or not isinstance(start, int):
        what = f"answer_start must be a whole number, not {_shown(start)}"
        raise DataError(what, where, "it counts characters of the context, from 0")
    if start < 0 or context[start : start + len(text)] != text:
        raise DataError(
            f"the answer {_shown(text)} does not stand at {start} of its context", where, _at(context, text, start)
        )
    end = start + len(text.rstrip())
    return start + len(text) - len(text.lstrip()), end


def _at(context: str, text: str, start: int) -> str:
    """Return a hint that says where the answer does stand, as near to `start` as may be."""
    places = [context.rfind(text, 0, max(start, 0) + len(text)), context.find(text, max(start, 0))]
    found = [place for place in places if place >= 0]
    if not found:
        return "it does not occur there: an answer is a part of its context, letter for letter"
    return f"write {min(found, key=lambda place: abs(place - start))}: answer_start counts characters, from 0"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
