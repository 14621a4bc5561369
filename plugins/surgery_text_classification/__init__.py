"""Text classification: one text, or a pair of texts, and one label; text regression: one number."""

from typing import Any

from surgery import TaskType, hookimpl
from surgery_text_classification.regression import TextRegression
from surgery_text_classification.task import TextClassification

__all__ = ["TextClassification", "TextRegression"]


@hookimpl
def surgery_tasks() -> list[TaskType[Any]]:
    return [TextClassification(), TextRegression()]
