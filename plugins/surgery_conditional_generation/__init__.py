"""Conditional generation: write a target for a source, scored by its tokens and by the texts that beam search finds."""

from surgery import hookimpl
from surgery_conditional_generation.task import ConditionalGeneration

__all__ = ["ConditionalGeneration"]


@hookimpl
def surgery_tasks() -> list[ConditionalGeneration]:
    return [ConditionalGeneration()]
