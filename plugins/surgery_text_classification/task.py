"""The task: labels are words or whole numbers, scored by accuracy, F1 or Matthews correlation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from surgery import Options, Rows, TaskType
from surgery.errors import DataError, Problem, nearest
from surgery_text_classification.texts import checked, encoded

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["TextClassification", "TextClassificationOptions"]

_NUMBER = re.compile(r"-?[0-9]{1,18}")


class TextClassificationOptions(Options):
    """Keys that may stand beside `kind: text-classification`."""

    max_length: int = Field(128, gt=1, le=1_000_000, description="Texts are cut after so many tokens.")
    metric: Literal["accuracy", "macro_f1", "f1", "matthews"] = Field(
        "accuracy", description="The metric that decides; f1 is that of the positive one of two labels."
    )
    positive: str | int | None = Field(
        None, description="The label that f1 is about; null means the last one in sorted order."
    )


class TextClassification(TaskType[TextClassificationOptions]):
    """Predict the label of a text (or of a text and `text_pair`)."""

    name = "text-classification"
    summary = "one label for a text or a pair of texts; accuracy, F1, Matthews correlation"
    options = TextClassificationOptions
    columns: ClassVar[Mapping[str, str]] = {"text": "text", "text_pair": "", "label": "label"}
    metric = "accuracy"
    greater_is_better = True
    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True, "macro_f1": True, "f1": True, "matthews": True}
    auto_class = "AutoModelForSequenceClassification"

    def labels(self, rows: Rows, options: TextClassificationOptions) -> tuple[str, ...]:
        found = {str(row["label"]) for row in rows if _is_label(row["label"])}
        numbers = all(_NUMBER.fullmatch(label) for label in found)
        # Of "1" and "01", which are one number, the text decides: a set has no order of its own.
        ordered = sorted(found, key=lambda label: (int(label), label)) if numbers else sorted(found)
        positive = options.positive if options.positive is None else str(options.positive)
        if len(ordered) > 2 and (options.metric == "f1" or positive is not None):
            key, hint = ("metric", "metric: macro_f1") if options.metric == "f1" else ("positive", "no positive:")
            what = f"f1 and its positive label are for two labels, and the training rows hold {len(ordered)}"
            raise DataError(what, f"task.{key}", f"write {hint} under task:")
        if positive is not None and positive not in found:
            what = f"the positive label {positive!r} does not occur in the training split"
            raise DataError(what, "task.positive", nearest(positive, found))
        if positive is not None:
            # `score` takes the second of two classes for the positive one.
            ordered = [label for label in ordered if label != positive] + [positive]
        return tuple(ordered)

    def encode(
        self,
        rows: Rows,
        tokenizer: Any,
        labels: Sequence[str],
        options: TextClassificationOptions,
        where: Callable[[int], str],
    ) -> list[dict[str, Any]]:
        number = {label: index for index, label in enumerate(labels)}
        checked(rows, where, lambda label, place: _problem(label, number, place))
        inputs = encoded(rows, tokenizer, options.max_length)
        return [{**kept, "labels": number[str(row["label"])]} for kept, row in zip(inputs, rows, strict=True)]

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch
        from torch.nn import functional

        loss = functional.cross_entropy(logits.float(), labels, reduction="none")
        return loss, torch.ones_like(labels)

    def score(self, items: Mapping[str, np.ndarray]) -> dict[str, float]:
        from surgery_text_classification.counts import class_scores  # numpy is slow to import for who only plans

        return {"loss": float(items["loss"].mean()), **class_scores(items["label"], items["prediction"])}


def _is_label(value: object) -> bool:
    return isinstance(value, str | int)


def _problem(label: Any, number: Mapping[str, int], where: str) -> Problem | None:
    if label == "":
        return Problem("the label is empty", where, "label the row, or remove it")
    if not _is_label(label):
        return Problem(
            f"a label must be text or a whole number, not {label!r}", where,
            "is the column the right one? numbers are predicted by kind: text-regression",
        )  # fmt: skip
    if str(label) in number:
        return None
    hint = nearest(str(label), number)
    return Problem(f"label {str(label)!r} does not occur in the training split", where, hint)
