"""Causal language modelling: predict each next token of a text."""

from surgery import hookimpl
from surgery_causal_lm.task import CausalLanguageModelling

__all__ = ["CausalLanguageModelling"]


@hookimpl
def surgery_tasks() -> list[CausalLanguageModelling]:
    return [CausalLanguageModelling()]
