"""What a task has a model write when it is evaluated for the last time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Generation"]


@dataclass(frozen=True, slots=True)
class Generation:
    """Prompts, how the model goes on from them, and how its texts become numbers.

    Attributes:
        items: for each row of the split, the item it belongs to: 0, 1, ... Rows of one source are one item, which is
            what a study draws anew; their losses are added up.
        prompts: token ids to go on from, one list for each text to write.
        sources: what each prompt asks, for whoever reads the texts.
        measure: the texts, in the order of the prompts -> per-item arrays, (items,) each, beside `loss` and `units`.
        beams: width of the beam search; 1 is greedy. Nothing is drawn.
        length_penalty: a text's score is the sum of its log-probabilities / length ** length_penalty.
        no_repeat_ngram: no text holds so many tokens in a row twice; 0 allows it.
        max_new_tokens: where a text ends at the latest.
        stops: token ids that end a text, beside the tokenizer's own end token.
    """

    items: Sequence[int]
    prompts: Sequence[Sequence[int]]
    sources: Sequence[str]
    measure: Callable[[Sequence[str]], Mapping[str, np.ndarray]]
    beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    max_new_tokens: int = 64
    stops: tuple[int, ...] = ()
