"""Tiny decoders."""

from __future__ import annotations

from typing import Any

import torch
from family import Family

__all__ = ["CONFIGS", "FAMILIES"]

_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, **_SPECIAL}
_LLAMA = {**_SHAPE, "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 20}
# The width of a head is a setting of its own, and here not the width of the model over the number of heads.
_WIDE = {**_LLAMA, "head_dim": 8}

_TEXT = {"vocab_size": 37, **_WIDE}
_VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
    "patch_size": 4, "vision_use_head": False,
}  # fmt: skip

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": (
        "GPTNeoXConfig",
        {**_SHAPE, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 20,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
    "bloom": ("BloomConfig", {"hidden_size": 16, "n_layer": 2, "n_head": 2, **_SPECIAL}),
    "falcon": ("FalconConfig", {**_SHAPE, "ffn_hidden_size": 24, "max_position_embeddings": 20}),
    "mpt": ("MptConfig", {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 20, **_SPECIAL}),
    "opt": (
        "OPTConfig",
        {**_SHAPE, "num_attention_heads": 2, "ffn_dim": 24, "max_position_embeddings": 20, "word_embed_proj_dim": 16},
    ),
    "gptj": (
        "GPTJConfig",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20, "n_inner": 24, "rotary_dim": 4, **_SPECIAL},
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 20, "intermediate_size": 24,
         "attention_types": [[["global", "local"], 1]], "window_size": 4, **_SPECIAL},
    ),
    "mistral": ("MistralConfig", _LLAMA),
    "granite": ("GraniteConfig", _LLAMA),
    "qwen2": ("Qwen2Config", _LLAMA),
    "qwen3": ("Qwen3Config", _WIDE),
    "smollm3": ("SmolLM3Config", _LLAMA),
    "gemma": ("GemmaConfig", _WIDE),
    "olmo": ("OlmoConfig", _LLAMA),
    "gemma2": ("Gemma2Config", _WIDE),
    "gemma3_text": ("Gemma3TextConfig", _WIDE),
    "gemma3": (
        "Gemma3Config",
        {"text_config": _TEXT, "vision_config": _VISION, "mm_tokens_per_image": 4, "image_token_index": 3,
         "boi_token_index": 4, "eoi_token_index": 5, **_SPECIAL},
    ),
    "phi": ("PhiConfig", {**_LLAMA, "num_attention_heads": 2}),
    "phi3": ("Phi3Config", _LLAMA),
    "olmo2": ("Olmo2Config", _LLAMA),
    "cohere": ("CohereConfig", _LLAMA),
    "cohere2": ("Cohere2Config", {**_LLAMA, "sliding_window": 4}),
    "starcoder2": ("Starcoder2Config", _LLAMA),
    "stablelm": ("StableLmConfig", _LLAMA),
}  # fmt: skip

_HEADS = ("ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
_CLASSES: dict[tuple[str, str], tuple[str, ...]] = {
    ("gpt_neox", "GPTNeoX"): _HEADS,
    ("bloom", "Bloom"): _HEADS,
    ("falcon", "Falcon"): _HEADS,
    ("mpt", "Mpt"): _HEADS,
    ("opt", "OPT"): ("ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering"),
    ("gptj", "GPTJ"): ("ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering"),
    ("gpt_neo", "GPTNeo"): _HEADS,
    ("mistral", "Mistral"): _HEADS,
    ("granite", "Granite"): ("ForCausalLM",),
    ("qwen2", "Qwen2"): _HEADS,
    ("qwen3", "Qwen3"): _HEADS,
    ("smollm3", "SmolLM3"): _HEADS,
    ("gemma", "Gemma"): _HEADS[:3],
    ("olmo", "Olmo"): _HEADS[:2],
    ("gemma2", "Gemma2"): _HEADS[:3],
    ("gemma3_text", "Gemma3Text"): ("ForSequenceClassification",),
    ("phi", "Phi"): _HEADS[:3],
    ("phi3", "Phi3"): _HEADS[:3],
    ("olmo2", "Olmo2"): _HEADS[:2],
    ("cohere", "Cohere"): ("ForCausalLM",),
    ("cohere2", "Cohere2"): ("ForCausalLM",),
    ("starcoder2", "Starcoder2"): _HEADS[:3],
    ("stablelm", "StableLm"): _HEADS[:3],
}


def _images(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each text of the batch with an image in its place of four tokens."""
    ids = batch["input_ids"].masked_fill(batch["input_ids"] < 6, 6)
    ids[:, 1:5] = 3
    pixels = torch.randn(len(ids), 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {**batch, "input_ids": ids, "pixel_values": pixels, "token_type_ids": (ids == 3).long()}


_FALCON_40B = {"new_decoder_architecture": True, "num_kv_heads": 2}
_FALCON_RW = {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}

FAMILIES: tuple[Family, ...] = (
    *(Family(kind, f"{name}{head}") for (kind, name), heads in _CLASSES.items() for head in ("Model", *heads)),
    Family("gemma3_text", "Gemma3ForCausalLM"),
    *(
        Family("gemma3", f"Gemma3{head}", batch=_images)
        for head in ("Model", "ForConditionalGeneration", "ForSequenceClassification")
    ),
    Family("gpt_neox", "GPTNeoXForCausalLM", {"tie_word_embeddings": True}, "tied"),
    Family("gpt_neox", "GPTNeoXForCausalLM", {"attention_bias": False, "use_parallel_residual": False}, "no-bias"),
    Family("bloom", "BloomForCausalLM", {"tie_word_embeddings": False}, "untied"),
    Family("falcon", "FalconForCausalLM", {"tie_word_embeddings": False, "bias": True}, "untied"),
    Family("falcon", "FalconForCausalLM", {**_FALCON_40B}, "grouped"),
    Family("falcon", "FalconForCausalLM", {**_FALCON_40B, "num_ln_in_parallel_attn": 1}, "grouped-one-norm"),
    Family("falcon", "FalconForCausalLM", _FALCON_RW, "by-head"),
    Family("falcon", "FalconForCausalLM", {"multi_query": False}, "by-head-parallel"),
    Family("falcon", "FalconForCausalLM", {"parallel_attn": False}, "one-key-serial"),
    Family("mpt", "MptForCausalLM", {"tie_word_embeddings": False}, "untied"),
    Family("opt", "OPTForCausalLM", {"do_layer_norm_before": False, "word_embed_proj_dim": 8}, "norm-after"),
    Family("opt", "OPTForSequenceClassification", {"word_embed_proj_dim": 8}, "narrow"),
    Family("opt", "OPTForCausalLM", {"enable_bias": False, "layer_norm_elementwise_affine": False}, "plain"),
    Family("opt", "OPTForCausalLM", {"tie_word_embeddings": False}, "untied"),
    Family("gpt_neo", "GPTNeoForCausalLM", {"tie_word_embeddings": False}, "untied"),
    Family("gptj", "GPTJForCausalLM", {"tie_word_embeddings": True}, "tied"),
    Family("mistral", "MistralForCausalLM", {"tie_word_embeddings": True, "head_dim": 8}, "tied"),
    Family("granite", "GraniteForCausalLM", {"attention_bias": True, "mlp_bias": True}, "biases"),
    Family("qwen2", "Qwen2ForCausalLM", {"tie_word_embeddings": True}, "tied"),
    Family("qwen3", "Qwen3ForCausalLM", {"tie_word_embeddings": True, "attention_bias": True}, "tied"),
    Family("smollm3", "SmolLM3ForCausalLM", {"tie_word_embeddings": False, "attention_bias": True}, "untied"),
    Family("gemma", "GemmaForCausalLM", {"tie_word_embeddings": False, "num_key_value_heads": 1}, "untied"),
    Family("gemma2", "Gemma2ForCausalLM", {"tie_word_embeddings": False}, "untied"),
    Family("phi", "PhiForCausalLM", {"qk_layernorm": True}, "norms"),
    Family("phi3", "Phi3ForCausalLM", {"num_key_value_heads": 4, "tie_word_embeddings": True}, "without-groups"),
    Family("olmo2", "Olmo2ForCausalLM", {"attention_bias": True}, "biases"),
    Family("cohere", "CohereForCausalLM", {"use_qk_norm": True}, "norms"),
    Family("cohere", "CohereForCausalLM", {"tie_word_embeddings": False, "attention_bias": True}, "untied"),
    Family("starcoder2", "Starcoder2ForCausalLM", {"use_bias": False, "tie_word_embeddings": False}, "no-bias"),
    Family("stablelm", "StableLmForCausalLM", {"use_parallel_residual": True, "use_qkv_bias": True}, "parallel"),
    Family("stablelm", "StableLmForCausalLM", {"qk_layernorm": True}, "norms"),
)
