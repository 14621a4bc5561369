"""Token streams for causal language models: packing rows, drawing training windows, measuring held-out loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Mean negative log-likelihood of a text: nats per token, and bits per byte, which compare over tokenizers."""

    nats_per_token: float
    bits_per_byte: float
    tokens: int

    def __str__(self) -> str:
        return f"{self.nats_per_token:.4f} nats/token {self.bits_per_byte:.4f} bits/byte"


def pack(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Tensor:
    """All texts as one stream of token ids, shape (tokens,), int64, each text followed by the end-of-text token."""
    ids: list[int] = []
    for text in texts:
        ids.extend(tokenizer.encode(text, add_special_tokens=False, verbose=False))
        ids.append(int(tokenizer.eos_token_id))
    return torch.tensor(ids, dtype=torch.int64)


def training_batches(stream: Tensor, *, context: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of shape (batch, context + 1) from a stream; each pass over it starts at another offset.

    The order depends on the arguments only, so skipping n batches resumes a run that had taken n steps.
    """
    if len(stream) < 2 * context + 1:
        raise ValueError(f"a stream of {len(stream)} tokens is too short for windows of {context + 1}")
    generator = torch.Generator().manual_seed(seed)
    columns = torch.arange(context + 1)
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < batch:
            offset = int(torch.randint(context, (), generator=generator))
            starts = torch.arange(offset, len(stream) - context, context)
            left = torch.cat([left, starts[torch.randperm(len(starts), generator=generator)]])
        taken, left = left[:batch], left[batch:]
        yield stream[taken[:, None] + columns]


@torch.no_grad()
def held_out_loss(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: list[str], *, context: int = 256, batch: int = 16
) -> HeldOutLoss:
    """Loss of a causal language model on texts packed into windows of `context` tokens that do not overlap.

    Every token after the first of its window is scored once; the model's training mode is put back afterwards.
    """
    stream = pack(tokenizer, texts)
    nats, scored = 0.0, 0
    was_training = bool(model.training)
    model.eval()
    try:
        for window in torch.split(stream, context * batch):
            whole = window[: len(window) // context * context].reshape(-1, context)
            rest = window[whole.numel() :]
            for ids in (whole, rest[None]):
                if ids.shape[0] and ids.shape[1] > 1:
                    logits = model(input_ids=ids).logits[:, :-1].float()
                    targets = ids[:, 1:].reshape(-1)
                    nats += functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").item()
                    scored += targets.numel()
    finally:
        model.train(was_training)
    if not scored:
        raise ValueError("no text to measure: at least two tokens are needed")
    per_token = nats / scored
    bytes_per_token = sum(len(text.encode("utf-8")) for text in texts) / len(stream)
    return HeldOutLoss(per_token, per_token / bytes_per_token / math.log(2), scored)
