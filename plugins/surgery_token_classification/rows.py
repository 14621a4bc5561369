"""Rows of a data set into sentences: a tag, by number, for every word."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery import Rows
from surgery.errors import DataError, Problem, nearest

__all__ = ["Sentence", "sentences", "tag_names"]

_MOST_PROBLEMS = 10
_NUMBER = re.compile(r"[0-9]{1,18}")
_COLUMN = "is the column the right one? see data.columns in the spec"


@dataclass(frozen=True)
class Sentence:
    """Words, and the number of each one's tag."""

    words: tuple[str, ...]
    tags: tuple[int, ...]


def tag_names(rows: Rows, given: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the tags: those that were given, else what the rows hold, in sorted order.

    Raises:
        DataError: fewer than two tags, or names that are given twice.
    """
    twice = sorted({name for name in given if list(given).count(name) > 1})
    if twice:
        raise DataError(f"two tags are called {twice[0]!r}", "task.tags", "name every tag once, in the data's order")
    found = set(given) or {str(tag) for row in rows if _is_list(row["tags"]) for tag in row["tags"] if _is_tag(tag)}
    if len(found) < 2:
        what = f"the training rows hold {len(found)} tag{'' if len(found) == 1 else 's'}; two are needed at least"
        raise DataError(what, "data.columns.tags", _COLUMN)
    if given:
        return tuple(given)
    numbers = all(_NUMBER.fullmatch(tag) for tag in found)
    # Of "1" and "01", which are one number, the text decides: a set has no order of its own.
    return tuple(sorted(found, key=lambda tag: (int(tag), tag)) if numbers else sorted(found))


def sentences(rows: Rows, names: Sequence[str], given: Sequence[str], where: Callable[[int], str]) -> list[Sentence]:
    """Return a sentence for each row; numbers stand for the names that were `given`, where there are any.

    Raises:
        DataError: the first problems, each with its row.
    """
    number = {name: index for index, name in enumerate(names)}
    found: list[Sentence] = []
    problems: list[Problem] = []
    for index, row in enumerate(rows):
        try:
            found.append(_sentence(row, number, len(given), where(index)))
        except DataError as error:
            problems += error.problems
            if len(problems) >= _MOST_PROBLEMS:
                break
    if problems:
        raise DataError.of(problems[:_MOST_PROBLEMS])
    return found


def _sentence(row: Mapping[str, Any], number: Mapping[str, int], given: int, where: str) -> Sentence:
    words, tags = row["words"], row["tags"]
    for name, value in (("words", words), ("tags", tags)):
        if not _is_list(value):
            raise DataError(f"the {name} must be a list, not {type(value).__name__}", where, _COLUMN)
    if not words and not tags:
        raise DataError("the row has no words", where, "remove it")
    if len(words) != len(tags):
        what = f"the row has {len(words)} words and {len(tags)} tags"
        raise DataError(what, where, "every word needs one tag")
    numbers = []
    for place, (word, tag) in enumerate(zip(words, tags, strict=True), start=1):
        if not isinstance(word, str):
            raise DataError(f"word {place} must be text, not {type(word).__name__}", where, _COLUMN)
        numbers.append(_number(tag, place, number, given, where))
    return Sentence(tuple(words), tuple(numbers))


def _number(tag: Any, place: int, number: Mapping[str, int], given: int, where: str) -> int:
    if tag == "" or not _is_tag(tag):
        said = "is empty" if tag == "" else f"must be text or a whole number, not {tag!r}"
        raise DataError(f"the tag of word {place} {said}", where, "tag every word; outside of entities that is O")
    if given and isinstance(tag, int):
        if 0 <= tag < given:
            return tag
        raise DataError(f"tag {tag} of word {place} has no name", where, f"task.tags names 0 to {given - 1}")
    if str(tag) in number:
        return number[str(tag)]
    known = "is not among task.tags" if given else "does not occur in the training split"
    near = nearest(str(tag), number)
    hint = near if given or near.startswith("did") else "name all tags, in any order, under task: tags: [O, ...]"
    raise DataError(f"tag {str(tag)!r} of word {place} {known}", where, hint)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_tag(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)
