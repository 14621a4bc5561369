"""The task: labels are words or whole numbers, scored by accuracy and macro F1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from surgery import Options, Rows, TaskType
from surgery.errors import DataError, Problem, nearest

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["TextClassification", "TextClassificationOptions"]

_MOST_PROBLEMS = 10


class TextClassificationOptions(Options):
    """Keys that may stand beside `kind: text-classification`."""

    max_length: int = Field(128, gt=1, le=1_000_000, description="Texts are cut after so many tokens.")


class TextClassification(TaskType[TextClassificationOptions]):
    """Predict the label of a text (or of a text and `text_pair`)."""

    name = "text-classification"
    summary = "one label for a text or a pair of texts; accuracy, macro F1"
    options = TextClassificationOptions
    columns: ClassVar[Mapping[str, str]] = {"text": "text", "text_pair": "", "label": "label"}
    metric = "accuracy"
    greater_is_better = True
    auto_class = "AutoModelForSequenceClassification"

    def labels(self, rows: Rows, options: TextClassificationOptions) -> tuple[str, ...]:
        found = {str(row["label"]) for row in rows if _is_label(row["label"])}
        numbers = all(label.lstrip("-").isdecimal() for label in found)
        return tuple(sorted(found, key=int) if numbers else sorted(found))

    def encode(
        self,
        rows: Rows,
        tokenizer: Any,
        labels: Sequence[str],
        options: TextClassificationOptions,
        where: Callable[[int], str],
    ) -> list[dict[str, Any]]:
        number = {label: index for index, label in enumerate(labels)}
        _check(rows, number, where)
        if not rows:
            return []
        texts = [row["text"] for row in rows]
        pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
        encoded = tokenizer(texts, pairs, truncation=True, max_length=options.max_length)
        keys = [key for key in ("input_ids", "token_type_ids", "attention_mask") if key in encoded]
        return [
            {**{key: encoded[key][index] for key in keys}, "labels": number[str(row["label"])]}
            for index, row in enumerate(rows)
        ]

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch
        from torch.nn import functional

        loss = functional.cross_entropy(logits.float(), labels, reduction="none")
        return loss, torch.ones_like(labels)

    def score(self, items: Mapping[str, np.ndarray]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score

        label, prediction = items["label"], items["prediction"]
        return {
            "loss": float(items["loss"].mean()),
            "accuracy": float(accuracy_score(label, prediction)),
            "macro_f1": float(f1_score(label, prediction, average="macro", zero_division=0)),
        }


def _is_label(value: object) -> bool:
    return isinstance(value, str | int)


def _check(rows: Rows, number: Mapping[str, int], where: Callable[[int], str]) -> None:
    """Raise one DataError with the first problems of `rows`, each with its place."""
    problems: list[Problem] = []
    for index, row in enumerate(rows):
        for column in ("text", "text_pair"):
            if not isinstance(row.get(column, ""), str):
                kind = type(row[column]).__name__
                hint = "every row needs a text here; is the column the right one?"
                problems.append(Problem(f"the {column} must be text, not {kind}", where(index), hint))
        label = row["label"]
        if label == "":
            problems.append(Problem("the label is empty", where(index), "label the row, or remove it"))
        elif not _is_label(label):
            what = f"a label must be text or a whole number, not {label!r}"
            problems.append(Problem(what, where(index), "is the column the right one?"))
        elif str(label) not in number:
            hint = nearest(str(label), number)
            problems.append(Problem(f"label {str(label)!r} does not occur in the training split", where(index), hint))
        if len(problems) >= _MOST_PROBLEMS:
            break
    if problems:
        raise DataError.of(problems)
