"""Tiny models of the types that the first specs are for."""

from __future__ import annotations

from typing import Any

from family import Family

__all__ = ["CONFIGS", "FAMILIES"]

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
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
    # transformers keeps this bias beside the decoder's own when the two are not tied, and never reads it.
    Family("bert", "BertForMaskedLM", {"tie_word_embeddings": False}, "untied", ("cls.predictions.bias",)),
    Family("gpt2", "GPT2LMHeadModel", {"tie_word_embeddings": False}, "untied"),
)  # fmt: skip
