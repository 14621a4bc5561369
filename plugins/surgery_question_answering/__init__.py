"""Extractive question answering: the part of a text that answers a question about it."""

from surgery import hookimpl
from surgery_question_answering.task import QuestionAnswering

__all__ = ["QuestionAnswering"]


@hookimpl
def surgery_tasks() -> list[QuestionAnswering]:
    return [QuestionAnswering()]
