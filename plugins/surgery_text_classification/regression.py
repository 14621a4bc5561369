"""The task: one number for a text, or for a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from surgery import Options, Rows, TaskType
from surgery.errors import Problem
from surgery_text_classification.texts import checked, encoded

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["TextRegression", "TextRegressionOptions"]


class TextRegressionOptions(Options):
    """Keys that may stand beside `kind: text-regression`."""

    max_length: int = Field(128, gt=1, le=1_000_000, description="Texts are cut after so many tokens.")
    metric: Literal["pearson", "spearman", "mae"] = Field("pearson", description="The metric that decides.")


class TextRegression(TaskType[TextRegressionOptions]):
    """Predict the number that belongs to a text (or to a text and `text_pair`), such as the similarity of two texts.

    The loss is the squared error: up to a factor and a constant the nats of a normal distribution of width 1.
    """

    name = "text-regression"
    summary = "one number for a text or a pair of texts; Pearson, Spearman, mean absolute error"
    options = TextRegressionOptions
    columns: ClassVar[Mapping[str, str]] = {"text": "text", "text_pair": "", "label": "label"}
    metric = "pearson"
    greater_is_better = True
    metrics: ClassVar[Mapping[str, bool]] = {"pearson": True, "spearman": True, "mae": False}
    auto_class = "AutoModelForSequenceClassification"

    def labels(self, rows: Rows, options: TextRegressionOptions) -> tuple[str, ...]:
        return ()

    def outputs(self, labels: Sequence[str], options: TextRegressionOptions) -> int:
        return 1

    def encode(
        self,
        rows: Rows,
        tokenizer: Any,
        labels: Sequence[str],
        options: TextRegressionOptions,
        where: Callable[[int], str],
    ) -> list[dict[str, Any]]:
        checked(rows, where, _problem)
        inputs = encoded(rows, tokenizer, options.max_length)
        return [{**kept, "labels": float(row["label"])} for kept, row in zip(inputs, rows, strict=True)]

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        loss = (logits.float().squeeze(-1) - labels.float()) ** 2
        return loss, torch.ones_like(labels, dtype=torch.int64)

    def answers(
        self,
        logits: torch.Tensor,
        examples: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
        options: TextRegressionOptions,
    ) -> Mapping[str, Sequence[Any]]:
        # Not `prediction` and `label`: those are classes, of which a study asks whether they are equal.
        return {
            "predicted": logits.float().squeeze(-1).tolist(),
            "wanted": [example["labels"] for example in examples],
        }

    def score(self, items: Mapping[str, np.ndarray]) -> dict[str, float]:
        from scipy.stats import rankdata

        predicted, wanted = items["predicted"], items["wanted"]
        return {
            "loss": float(items["loss"].mean()),
            "pearson": _correlation(predicted, wanted),
            "spearman": _correlation(rankdata(predicted), rankdata(wanted)),
            "mae": float(abs(predicted - wanted).mean()),
        }


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Pearson's correlation; 0 where one side is constant, which then tells nothing of the other."""
    import numpy as np

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    one, other = one - one.mean(), other - other.mean()
    size = math.sqrt(float(one @ one)) * math.sqrt(float(other @ other))
    return float(one @ other) / size if size else 0.0


def _problem(label: Any, where: str) -> Problem | None:
    hint = "is the column the right one? labels that are words belong to kind: text-classification"
    if label == "":
        return Problem("the label is empty", where, "give it a number, or remove the row")
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        return Problem(f"the label must be a number, not {label!r}", where, hint)
    try:
        number = float(label)
    except (ValueError, OverflowError):
        return Problem(f"the label must be a number, not {str(label)[:60]!r}", where, hint)
    if not math.isfinite(number):
        return Problem(f"the label is {number}, which no model can learn", where, "give it a number, or remove the row")
    if abs(number) > 1e18:
        return Problem(f"the label {number:g} is too large to be squared in float32", where, "scale the labels")
    return None
