"""Tiny random models of every described family, with every task head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = ["FAMILIES", "Family", "build", "family"]

WORDS = 37


@dataclass(frozen=True)
class Family:
    """One model class of transformers with options of its configuration."""

    kind: str
    cls: str
    config: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        return f"{self.cls}{'-' if self.note else ''}{self.note}"


_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": (
        "BertConfig",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "max_position_embeddings": 20},
    ),
    "roberta": (
        "RobertaConfig",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "max_position_embeddings": 20, "pad_token_id": 1, "type_vocab_size": 1},
    ),
    "distilbert": (
        "DistilBertConfig",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 20},
    ),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20, "bos_token_id": 0, "eos_token_id": 0,
         "pad_token_id": 0},
    ),
    "llama": (
        "LlamaConfig",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 24, "max_position_embeddings": 20, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0},
    ),
}  # fmt: skip

_ENCODER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")

FAMILIES: tuple[Family, ...] = (
    *(Family("bert", f"Bert{head}") for head in ("Model", *_ENCODER_HEADS, "ForPreTraining")),
    *(Family("roberta", f"Roberta{head}") for head in ("Model", *_ENCODER_HEADS)),
    *(Family("distilbert", f"DistilBert{head}") for head in ("Model", *_ENCODER_HEADS)),
    *(
        Family("gpt2", f"GPT2{head}")
        for head in ("Model", "LMHeadModel", "ForSequenceClassification", "ForTokenClassification",
                     "ForQuestionAnswering")
    ),
    *(
        Family("llama", f"Llama{head}")
        for head in ("Model", "ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering",
                     "ForTokenClassification")
    ),
    Family("llama", "LlamaForCausalLM", {"tie_word_embeddings": True}, "tied"),
    Family("llama", "LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}, "biases"),
    Family("llama", "LlamaForCausalLM", {"num_key_value_heads": 4}, "without-groups"),
    Family("bert", "BertForMaskedLM", {"tie_word_embeddings": False}, "untied"),
    Family("gpt2", "GPT2LMHeadModel", {"tie_word_embeddings": False}, "untied"),
)  # fmt: skip


def family(name: str) -> Family:
    """Return the family that prints as `name`."""
    return next(item for item in FAMILIES if str(item) == name)


def build(item: Family | str, seed: int = 0, **config: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return a model in evaluation mode with random weights, and a batch that it can be called with."""
    import transformers

    chosen = family(item) if isinstance(item, str) else item
    name, options = _CONFIGS[chosen.kind]
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
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
