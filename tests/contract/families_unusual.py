"""Tiny models with unusual experts, recurrences, convolutions or raw parameters."""

from __future__ import annotations

from typing import Any

import torch
from family import Family

__all__ = ["CONFIGS", "FAMILIES"]

_SPECIAL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_DECODER: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 20, "experts_implementation": "eager", **_SPECIAL,
}  # fmt: skip
_LATENT: dict[str, Any] = {
    **_DECODER, "num_key_value_heads": 4, "moe_intermediate_size": 12, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "q_lora_rank": 6, "kv_lora_rank": 10, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 6,
}  # fmt: skip
_SPARSE: dict[str, Any] = {
    **_LATENT, "n_group": 2, "topk_group": 1, "mlp_layer_types": ["dense", "sparse"], "index_topk": 4, "index_head_dim": 4,
    "index_n_heads": 2,
}  # fmt: skip
_LLAMA_4: dict[str, Any] = {
    **_DECODER, "head_dim": 4, "intermediate_size": 12, "intermediate_size_mlp": 20, "num_local_experts": 4,
    "moe_layers": [1], "no_rope_layers": [1, 0], "layer_types": ["chunked_attention", "full_attention"],
    "attention_chunk_size": 8,
}  # fmt: skip

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "rwkv": ("RwkvConfig", {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}),
    "xlstm": (
        "xLSTMConfig",
        {"hidden_size": 128, "num_hidden_layers": 2, "num_heads": 2, "chunk_size": 4, "ffn_proj_factor": 0.3,
         **_SPECIAL},
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 24, "attention_window_size": 4, "block_types": ["recurrent", "attention"], **_SPECIAL},
    ),
    "olmo_hybrid": (
        "OlmoHybridConfig",
        {**_DECODER, "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 4,
         "linear_value_head_dim": 5, "linear_num_key_heads": 3, "linear_num_value_heads": 3},
    ),
    "longcat_flash": (
        "LongcatFlashConfig",
        {**{name: value for name, value in _LATENT.items() if name not in ("num_hidden_layers", "intermediate_size")},
         "num_layers": 2, "ffn_hidden_size": 24, "expert_ffn_hidden_size": 12, "moe_topk": 2, "zero_expert_num": 2,
         "head_dim": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "llama4_text": ("Llama4TextConfig", _LLAMA_4),
    "llama4": (
        "Llama4Config",
        {"text_config": {"vocab_size": 37, **_LLAMA_4}, "image_token_index": 3, "boi_token_index": 4, "eoi_token_index": 5,
         "vision_config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                           "image_size": 8, "patch_size": 4, "pixel_shuffle_ratio": 0.5, "projector_input_dim": 20,
                           "projector_output_dim": 20, "vision_output_dim": 20}},
    ),
    "moshi": ("MoshiConfig", {**_DECODER, "ffn_dim": 24, "head_dim": 4, "sliding_window": 8}),
    "deepseek_v32": ("DeepseekV32Config", _SPARSE),
    "glm_moe_dsa": ("GlmMoeDsaConfig", _SPARSE),
    "hy_v4": ("HYV4Config", {**_SPARSE, "hc_mult": 2}),
}  # fmt: skip


def _images(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each text of the batch with an image whose four patches are one token."""
    ids = batch["input_ids"].masked_fill(batch["input_ids"] < 6, 6)
    ids[:, 1] = 3
    pixels = torch.randn(len(ids), 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {**batch, "input_ids": ids, "pixel_values": pixels}


_HEADS = ("Model", "ForCausalLM")

FAMILIES: tuple[Family, ...] = (
    *(Family("rwkv", f"Rwkv{head}") for head in _HEADS),
    Family("rwkv", "RwkvForCausalLM", {"tie_word_embeddings": True}, "tied"),
    Family("rwkv", "RwkvForCausalLM", {"rescale_every": 1}, "rescaled"),
    Family("xlstm", "xLSTMForCausalLM", {"use_bias": True, "tie_word_embeddings": True}, "tied"),
    *(Family("xlstm", f"xLSTM{head}") for head in _HEADS),
    *(Family("recurrent_gemma", f"RecurrentGemma{head}") for head in _HEADS),
    *(Family("olmo_hybrid", f"OlmoHybrid{head}") for head in _HEADS),
    *(Family("longcat_flash", f"LongcatFlash{head}") for head in _HEADS),
    Family("llama4_text", "Llama4TextModel"),
    Family("llama4_text", "Llama4ForCausalLM", {"attention_bias": True}, "biases"),
    Family("llama4_text", "Llama4ForCausalLM", {"moe_layers": [0, 1], "tie_word_embeddings": True}, "tied"),
    Family("llama4", "Llama4ForConditionalGeneration", batch=_images),
    *(Family("moshi", f"Moshi{head}") for head in _HEADS),
    *(Family("deepseek_v32", f"DeepseekV32{head}") for head in _HEADS),
    *(Family("glm_moe_dsa", f"GlmMoeDsa{head}") for head in _HEADS),
    Family("glm_moe_dsa", "GlmMoeDsaForCausalLM", {"indexer_types": ["full", "shared"]}, "shared-indexer"),
    *(Family("hy_v4", f"HYV4{head}") for head in _HEADS),
)  # fmt: skip
