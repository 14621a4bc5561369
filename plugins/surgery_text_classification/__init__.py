"""Text classification: one text, or a pair of texts, and one label."""

from surgery import hookimpl
from surgery_text_classification.task import TextClassification

__all__ = ["TextClassification"]


@hookimpl
def surgery_tasks() -> list[TextClassification]:
    return [TextClassification()]
