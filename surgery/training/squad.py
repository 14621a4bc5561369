"""SQuAD's own files: articles, paragraphs and questions, one in another; flattened to a row for each question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgery.errors import DataError
from surgery.training.table import Row, Table

__all__ = ["squad_table"]

_HINT = "SQuAD's format is data[].paragraphs[]: a context, and qas[]: question and answers[] of text, answer_start"


def squad_table(document: Mapping[str, Any], origin: str) -> Table:
    """Return the questions of `document` with the columns of the hub's data set `rajpurkar/squad`.

    `id`, `title`, `context`, `question`, and `answers`: {text: [...], answer_start: [...]}. What the values are is for
    the task to check; what is missing is told here.

    Raises:
        DataError: an article, paragraph, question or answer that is not what the format says, with its place.
    """
    rows: list[Row] = []
    for at, article in enumerate(_list(document, "data", origin)):
        article_at = f"{origin}:data[{at}]"
        for number, paragraph in enumerate(_list(article, "paragraphs", article_at)):
            where = f"{article_at}.paragraphs[{number}]"
            for index, asked in enumerate(_list(paragraph, "qas", where)):
                place = f"{where}.qas[{index}]"
                answers = _list(asked, "answers", place)
                rows.append(
                    {
                        "id": asked.get("id"),
                        "title": article.get("title"),
                        "context": _value(paragraph, "context", where),
                        "question": _value(asked, "question", place),
                        "answers": {
                            "text": [_value(answer, "text", place) for answer in answers],
                            "answer_start": [_value(answer, "answer_start", place) for answer in answers],
                        },
                    }
                )
    return Table(rows, origin, range(1, len(rows) + 1), "question ")


def _value(holder: Any, key: str, where: str) -> Any:
    if not isinstance(holder, Mapping) or key not in holder:
        raise DataError(f"there is no {key!r}", where, _HINT)
    return holder[key]


def _list(holder: Any, key: str, where: str) -> list[Any]:
    found = _value(holder, key, where)
    if not isinstance(found, list):
        raise DataError(f"{key!r} must be a list", where, _HINT)
    return found
