"""The task: nats per token of the targets while training, texts and their scores at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from surgery import Generation, Options, Rows, TaskType
from surgery_conditional_generation.format import Layout, stop_tokens
from surgery_conditional_generation.measures import Measures, require_libraries, scores

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["ConditionalGeneration", "ConditionalGenerationOptions"]

_IGNORED = -100


class ConditionalGenerationOptions(Options):
    """Keys that may stand beside `kind: conditional-generation`."""

    max_length: int = Field(512, gt=1, le=1_000_000, description="Source and target have at most so many tokens.")
    truncate: bool = Field(True, description="Cut longer ones on the right; false makes them an error.")
    prefix: str = Field("", max_length=1000, description="Text in front of every source.")
    separator: str | None = Field(
        None, max_length=1000, description="Text between source and target; null means the token that begins a text."
    )
    lead: str = Field(" ", max_length=1000, description="Text in front of every target, which has a loss as it has.")
    suffix: str = Field("", max_length=1000, description="Text after every target; the end token follows in any case.")
    beams: int = Field(10, gt=0, le=1000, description="Width of the beam search; 1 is greedy.")
    length_penalty: float = Field(
        1.0, ge=-100, le=100, description="A text scores the sum of its log-probabilities / length ** length_penalty."
    )
    no_repeat_ngram: int = Field(0, ge=0, le=1000, description="No text holds so many tokens in a row twice; 0 allows.")
    max_new_tokens: int = Field(64, gt=0, le=1_000_000, description="Tokens of a text at most.")
    stop: tuple[str, ...] = Field(
        (), max_length=16, description="Texts of one token that end a completion, as the end token does."
    )
    generate: int | None = Field(
        None, gt=0, le=1_000_000_000, description="For how many sources of a split texts are written; null means all."
    )
    metric: Literal["bleu", "nist", "chrf", "rouge_l", "loss"] = Field("bleu", description="The metric that decides.")
    lowercase: bool = Field(False, description="Score without regard to upper and lower case.")


class ConditionalGeneration(TaskType[ConditionalGenerationOptions]):
    """Write `target` for `source`. Rows with one source share their targets as references, and are one item."""

    name = "conditional-generation"
    summary = "a target text for a source; nats per token, BLEU, NIST, chrF, ROUGE-L of generated texts"
    options = ConditionalGenerationOptions
    columns: ClassVar[Mapping[str, str]] = {"source": "source", "target": "target"}
    metric = "bleu"
    greater_is_better = True
    metrics: ClassVar[Mapping[str, bool]] = {"bleu": True, "nist": True, "chrf": True, "rouge_l": True, "loss": False}
    auto_class = "AutoModelForCausalLM"

    def labels(self, rows: Rows, options: ConditionalGenerationOptions) -> tuple[str, ...]:
        require_libraries()  # asked first, before a model is loaded and hours are spent on training it
        return ()

    def encode(
        self,
        rows: Rows,
        tokenizer: Any,
        labels: Sequence[str],
        options: ConditionalGenerationOptions,
        where: Callable[[int], str],
    ) -> list[dict[str, Any]]:
        return Layout.of(tokenizer, options).examples(rows, where)

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from torch.nn import functional

        # Only where there is a loss: sources are often longer than targets, and logits are large.
        targets = functional.pad(labels[:, 1:], (0, 1), value=_IGNORED)
        wanted = targets != _IGNORED
        loss = functional.cross_entropy(logits[wanted].float(), targets[wanted], reduction="none")
        rows = wanted.nonzero()[:, 0]
        return loss.new_zeros(len(labels)).index_add(0, rows, loss), wanted.sum(dim=1)

    def score(self, items: Mapping[str, np.ndarray]) -> dict[str, float]:
        loss = float(items["loss"].sum() / max(items["units"].sum(), 1))
        return {**scores(items), "loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def generation(self, rows: Rows, tokenizer: Any, options: ConditionalGenerationOptions) -> Generation:
        references: dict[str, list[str]] = {}
        for row in rows:
            references.setdefault(row["source"], []).append(row["target"])
        number = {source: index for index, source in enumerate(references)}
        chosen = _spread(len(number), options.generate)
        sources = [source for source, index in number.items() if index in set(chosen)]
        measures = Measures([references[source] for source in sources], options.lowercase)
        return Generation(
            items=[number[row["source"]] for row in rows],
            prompts=Layout.of(tokenizer, options).prompts(sources),
            sources=sources,
            measure=lambda texts: measures.items(texts, chosen, len(number)),
            beams=options.beams,
            length_penalty=options.length_penalty,
            no_repeat_ngram=options.no_repeat_ngram,
            max_new_tokens=options.max_new_tokens,
            stops=stop_tokens(tokenizer, options.stop),
        )


def _spread(count: int, wanted: int | None) -> list[int]:
    """Return `wanted` of the numbers below `count`, evenly spread, in order."""
    wanted = count if wanted is None else min(wanted, count)
    return [place * count // wanted for place in range(wanted)] if wanted else []
