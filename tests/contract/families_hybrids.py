"""Tiny models that mix attention with linear attention or state spaces."""

from __future__ import annotations

from typing import Any

import torch
from family import Family

__all__ = ["CONFIGS", "FAMILIES"]

# grouped_mm, the default, knows neither float64 nor tensors whose rows are no multiple of 16 bytes.
_SHARED = {"experts_implementation": "eager", "max_position_embeddings": 20, "bos_token_id": 1, "eos_token_id": 2,
           "pad_token_id": 0}  # fmt: skip
_DECODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 24, **_SHARED}  # fmt: skip
_BOTH = {"layer_types": ["linear_attention", "full_attention"]}
# Three heads of values for each of two of keys: parts of four sizes.
_DELTA = {**_DECODER, **_BOTH, "head_dim": 8, "linear_key_head_dim": 4, "linear_value_head_dim": 5,
          "linear_num_key_heads": 2, "linear_num_value_heads": 6}  # fmt: skip
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20}
_MAMBA_2 = {"mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 3, "mamba_chunk_size": 4}
_CONV = {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}
_LATENT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
           "intermediate_size": 24, "moe_intermediate_size": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 4,
           "qk_rope_head_dim": 2, "v_head_dim": 6, "experts_implementation": "eager", "bos_token_id": 1,
           "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
_VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "patch_size": 2, "out_hidden_size": 16,
           "temporal_patch_size": 1, "spatial_merge_size": 2, "num_position_embeddings": 16}  # fmt: skip
_SEEN = {"vision_config": _VISION, "image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("Qwen3NextConfig", {**_DELTA, **_MOE}),
    "qwen3_5_text": ("Qwen3_5TextConfig", _DELTA),
    "qwen3_5_moe_text": ("Qwen3_5MoeTextConfig", {**_DELTA, **_MOE}),
    "qwen3_5": ("Qwen3_5Config", {"text_config": {"vocab_size": 37, **_DELTA}, **_SEEN}),
    "qwen3_5_moe": ("Qwen3_5MoeConfig", {"text_config": {"vocab_size": 37, **_DELTA, **_MOE}, **_SEEN}),
    "bamba": ("BambaConfig", {**_DECODER, **_MAMBA_2, "attn_layer_indices": [1]}),
    "falcon_h1": (
        "FalconH1Config",
        {**_DECODER, **_MAMBA_2, "mamba_d_ssm": 24, "mamba_d_head": 6, "ssm_multipliers": [0.5, 1.5, 0.8, 1.2, 2.0]},
    ),
    "granitemoe": ("GraniteMoeConfig", {**_DECODER, "num_local_experts": 4}),
    "granitemoeshared": ("GraniteMoeSharedConfig", {**_DECODER, "num_local_experts": 4, "shared_intermediate_size": 20}),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {**_DECODER, **_BOTH, **_MAMBA_2, "num_local_experts": 4, "shared_intermediate_size": 20},
    ),
    "nemotron_h": (
        "NemotronHConfig",
        {**_DECODER, "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "head_dim": 8,
         "ssm_state_size": 3, "mamba_num_heads": 4, "mamba_head_dim": 6, "n_groups": 2, "chunk_size": 4,
         "n_routed_experts": 4, "moe_intermediate_size": 12, "moe_shared_expert_intermediate_size": 20},
    ),
    "falcon_mamba": (
        "FalconMambaConfig", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 3},
    ),
    "zamba": (
        "ZambaConfig",
        {**_DECODER, "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
         "num_key_value_heads": 4, "mamba_d_state": 5, "mamba_dt_rank": 3},
    ),
    "zamba2": (
        "Zamba2Config",
        {**_DECODER, "layers_block_type": ["linear_attention", "hybrid", "hybrid", "hybrid"], "num_hidden_layers": 4,
         "num_key_value_heads": 4, "mamba_d_state": 3, "mamba_ngroups": 2, "n_mamba_heads": 4, "chunk_size": 4,
         "num_mem_blocks": 2, "adapter_rank": 2, "use_shared_attention_adapter": True},
    ),
    "lfm2": ("Lfm2Config", {**_DECODER, **_CONV, "block_multiple_of": 4}),
    "lfm2_moe": (
        "Lfm2MoeConfig",
        {**_DECODER, **_CONV, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
         "num_dense_layers": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "lfm3": (
        "Lfm3Config",
        {**_DECODER, "layer_types": ["conv", "full_attention", "sliding_attention"], "num_hidden_layers": 3,
         "head_dim": 8, "sliding_window": 4},
    ),
    "kimi_linear": (
        "KimiLinearConfig",
        {**_LATENT, "model_max_length": 20, "layer_types": ["linear_attention", "full_attention"],
         "mlp_layer_types": ["dense", "sparse"], "linear_head_dim": 6, "linear_num_heads": 3, "num_experts": 4,
         "num_experts_per_token": 2, "num_expert_group": 2, "topk_group": 1},
    ),
    "bailing_hybrid": (
        "BailingHybridConfig",
        {**_LATENT, "model_max_length": 20, "layer_types": ["linear_attention", "full_attention"],
         "mlp_layer_types": ["dense", "sparse"], "head_dim": 6, "num_experts": 4, "num_experts_per_token": 2,
         "num_expert_group": 2, "topk_group": 1, "num_nextn_predict_layers": 0},
    ),
    "minimax": ("MiniMaxConfig", {**_DECODER, **_BOTH, "num_local_experts": 4, "head_dim": 8, "block_size": 4}),
    "jetmoe": (
        "JetMoeConfig",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_key_value_heads": 2, "kv_channels": 6, "intermediate_size": 12,
         "num_local_experts": 3, "max_position_embeddings": 20, "pad_token_id": 0},
    ),
}  # fmt: skip


def _images(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each text of the batch with an image of four patches, which are merged into one token."""
    ids = batch["input_ids"].masked_fill(batch["input_ids"] < 6, 6)
    ids[:, 1] = 3
    patches = torch.randn(4 * len(ids), 3 * 2 * 2, generator=torch.Generator().manual_seed(1))
    grid = torch.tensor([[1, 2, 2]] * len(ids))
    return {**batch, "input_ids": ids, "pixel_values": patches, "image_grid_thw": grid,
            "mm_token_type_ids": (ids == 3).long()}  # fmt: skip


_HEADS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")

FAMILIES: tuple[Family, ...] = (
    *(Family("qwen3_next", f"Qwen3Next{head}") for head in _HEADS),
    Family("qwen3_next", "Qwen3NextForCausalLM", {"mlp_only_layers": [1], "attention_bias": True}, "dense"),
    Family("qwen3_next", "Qwen3NextForCausalLM", {"linear_num_value_heads": 2, "tie_word_embeddings": True}, "tied"),
    *(Family("qwen3_5_text", f"Qwen3_5{head}") for head in ("TextModel", "ForCausalLM", "TextForSequenceClassification")),
    *(Family("qwen3_5_moe_text", f"Qwen3_5Moe{head}") for head in ("TextModel", "ForCausalLM")),
    Family("qwen3_5_text", "Qwen3_5ForCausalLM", {"tie_word_embeddings": True, "attention_bias": True}, "tied"),
    *(
        Family("qwen3_5", f"Qwen3_5{head}", batch=_images)
        for head in ("Model", "ForConditionalGeneration", "ForSequenceClassification", "ForTokenClassification")
    ),
    *(Family("bamba", f"Bamba{head}") for head in _HEADS[:2]),
    Family("bamba", "BambaForCausalLM", {"mamba_proj_bias": True, "attention_bias": True, "tie_word_embeddings": True}, "tied"),
    *(Family("falcon_h1", f"FalconH1{head}") for head in _HEADS[:2]),
    Family("falcon_h1", "FalconH1ForCausalLM", {"mamba_rms_norm": True, "tie_word_embeddings": True}, "norm"),
    *(Family("granitemoe", f"GraniteMoe{head}") for head in _HEADS[:2]),
    *(Family("granitemoeshared", f"GraniteMoeShared{head}") for head in _HEADS[:2]),
    Family("granitemoeshared", "GraniteMoeSharedForCausalLM", {"shared_intermediate_size": 0, "tie_word_embeddings": True}, "alone"),
    *(Family("granitemoehybrid", f"GraniteMoeHybrid{head}") for head in _HEADS[:2]),
    Family("granitemoehybrid", "GraniteMoeHybridForCausalLM", {"num_local_experts": 0, "tie_word_embeddings": True}, "dense"),
    *(Family("nemotron_h", f"NemotronH{head}") for head in _HEADS[:2]),
    Family("nemotron_h", "NemotronHForCausalLM", {"moe_latent_size": 8, "use_bias": True, "mlp_bias": True}, "latent"),
    *(Family("falcon_mamba", f"FalconMamba{head}") for head in _HEADS[:2]),
    *(Family("zamba", f"Zamba{head}") for head in _HEADS[:3]),
    Family("zamba", "ZambaForCausalLM", {"n_mamba_heads": 1, "mamba_proj_bias": True, "tie_word_embeddings": False}, "one-head"),
    *(Family("zamba2", f"Zamba2{head}") for head in _HEADS[:3]),
    Family(
        "zamba2", "Zamba2ForCausalLM",
        {"num_mem_blocks": 1, "use_shared_attention_adapter": False, "add_bias_linear": True, "use_mem_rope": True}, "one-block",
    ),
    *(Family("lfm2", f"Lfm2{head}") for head in _HEADS[:2]),
    *(Family("lfm2_moe", f"Lfm2Moe{head}") for head in _HEADS[:2]),
    Family("lfm2_moe", "Lfm2MoeForCausalLM", {"conv_bias": True, "use_expert_bias": False}, "biases"),
    *(Family("lfm3", f"Lfm3{head}") for head in _HEADS[:2]),
    Family("lfm3", "Lfm3ForCausalLM", {"use_sandwich_norm": False, "use_attention_gate": False, "conv_bias": True}, "plain"),
    *(Family("kimi_linear", f"KimiLinear{head}") for head in _HEADS[:2]),
    Family("kimi_linear", "KimiLinearForCausalLM", {"q_lora_rank": 5, "attention_bias": True}, "compressed-query"),
    *(Family("bailing_hybrid", f"BailingHybrid{head}") for head in _HEADS[:2]),
    *(Family("minimax", f"MiniMax{head}") for head in _HEADS),
    *(Family("jetmoe", f"JetMoe{head}") for head in _HEADS[:3]),
    *(Family("qwen3_5_moe", f"Qwen3_5Moe{head}", batch=_images) for head in ("Model", "ForConditionalGeneration")),
)  # fmt: skip
