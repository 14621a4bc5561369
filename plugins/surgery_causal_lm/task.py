"""The task: texts packed into blocks, or one by one; scored in nats per token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from surgery import Options, Rows, TaskType
from surgery.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["CausalLanguageModelling", "CausalLanguageModellingOptions"]

_IGNORED = -100
_MOST_PROBLEMS = 10


class CausalLanguageModellingOptions(Options):
    """Keys that may stand beside `kind: causal-lm`."""

    max_length: int = Field(128, gt=1, le=1_000_000, description="Tokens in a block, or at most in a text.")
    packing: bool = Field(True, description="Join the texts, with the end token between them, and cut equal blocks.")


class CausalLanguageModelling(TaskType[CausalLanguageModellingOptions]):
    """Predict the next token, everywhere in a text but at its first token."""

    name = "causal-lm"
    summary = "the next token of a text; nats per token, perplexity"
    options = CausalLanguageModellingOptions
    columns: ClassVar[Mapping[str, str]] = {"text": "text"}
    metric = "loss"
    greater_is_better = False
    auto_class = "AutoModelForCausalLM"

    def labels(self, rows: Rows, options: CausalLanguageModellingOptions) -> tuple[str, ...]:
        return ()

    def encode(
        self,
        rows: Rows,
        tokenizer: Any,
        labels: Sequence[str],
        options: CausalLanguageModellingOptions,
        where: Callable[[int], str],
    ) -> list[dict[str, Any]]:
        _check(rows, where)
        texts = [row["text"] for row in rows]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        if options.packing:
            pieces = _blocks(_tokens(texts, tokenizer, add_special_tokens=False), end, options.max_length)
        else:
            kept = _tokens(texts, tokenizer, truncation=True, max_length=options.max_length)
            pieces = [(ids + end if len(ids) < options.max_length else ids) for ids in kept]
        # A single token predicts nothing.
        examples = [_example(ids) for ids in pieces if len(ids) > 1]
        if not examples and rows:
            raise DataError("the texts hold no two tokens in a row", where(0), "is the column the right one?")
        return examples

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from torch.nn import functional

        # Labels move, not logits: cutting the last position off the logits would copy all of them.
        targets = functional.pad(labels[:, 1:], (0, 1), value=_IGNORED)
        loss = functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="none"
        )
        return loss.view_as(targets).sum(dim=1), (targets != _IGNORED).sum(dim=1)

    def score(self, items: Mapping[str, np.ndarray]) -> dict[str, float]:
        loss = float(items["loss"].sum() / max(items["units"].sum(), 1))
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def _tokens(texts: Sequence[str], tokenizer: Any, **options: Any) -> list[list[int]]:
    if not texts:
        return []
    # `verbose` off: texts longer than the model's context are cut into blocks, there is nothing to warn of.
    encoded = tokenizer(list(texts), return_attention_mask=False, verbose=False, **options)
    return list(encoded["input_ids"])


def _blocks(texts: Iterable[Sequence[int]], end: Sequence[int], length: int) -> list[list[int]]:
    """Join `texts`, `end` after each, and cut blocks of `length`; the rest is the last, shorter block."""
    stream = [token for ids in texts if ids for token in (*ids, *end)]
    return [stream[start : start + length] for start in range(0, len(stream), length)]


def _example(ids: list[int]) -> dict[str, Any]:
    # The first token has no context: -100 there says so to whoever counts labels without shifting them.
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [_IGNORED, *ids[1:]]}


def _check(rows: Rows, where: Callable[[int], str]) -> None:
    problems: list[Problem] = []
    for index, row in enumerate(rows):
        if not isinstance(row["text"], str):
            hint = "every row needs a text here; is the column the right one?"
            problems.append(Problem(f"the text must be text, not {type(row['text']).__name__}", where(index), hint))
            if len(problems) >= _MOST_PROBLEMS:
                break
    if problems:
        raise DataError.of(problems)
