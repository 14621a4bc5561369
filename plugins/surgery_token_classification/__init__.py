"""Token classification: a tag for every word of a sentence, such as named entities or parts of speech."""

from surgery import hookimpl
from surgery_token_classification.task import TokenClassification

__all__ = ["TokenClassification"]


@hookimpl
def surgery_tasks() -> list[TokenClassification]:
    return [TokenClassification()]
