"""Tiny random models of every described type, with every task head."""

from __future__ import annotations

from typing import Any

import families_core
import families_decoders
import families_encoders
import families_experts
import families_hybrids
import families_kin
import families_unusual
import families_various
import torch
from family import Family
from torch import nn

__all__ = ["CONFIGS", "FAMILIES", "WORDS", "Family", "build", "family"]

WORDS = 37
_PARTS = (
    families_core,
    families_encoders,
    families_decoders,
    families_experts,
    families_hybrids,
    families_kin,
    families_unusual,
    families_various,
)

CONFIGS = {kind: config for part in _PARTS for kind, config in part.CONFIGS.items()}
FAMILIES: tuple[Family, ...] = tuple(family for part in _PARTS for family in part.FAMILIES)


def family(name: str) -> Family:
    """Return the family that prints as `name`."""
    return next(item for item in FAMILIES if str(item) == name)


def build(item: Family | str, seed: int = 0, **config: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return a model in evaluation mode with random weights, and a batch that it can be called with."""
    import transformers

    chosen = family(item) if isinstance(item, str) else item
    name, options = CONFIGS[chosen.kind]
    made = getattr(transformers, name)(
        **{"vocab_size": WORDS, "attn_implementation": "eager", **options, **chosen.config, **config}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, chosen.cls)(made).eval()
        with torch.no_grad():  # biases and norms of a fresh model are all zeros and ones
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    ids = torch.randint(3, WORDS, (2, 7), generator=torch.Generator().manual_seed(seed))
    words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return model, chosen.batch(words) if chosen.batch else words
