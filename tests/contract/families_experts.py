"""Tiny models with experts, latent attention or state spaces."""

from __future__ import annotations

from typing import Any

from family import Family

__all__ = ["CONFIGS", "FAMILIES"]

# grouped_mm, the default, knows neither float64 nor tensors whose rows are no multiple of 16 bytes.
_SHARED = {"experts_implementation": "eager", "max_position_embeddings": 20, "bos_token_id": 1, "eos_token_id": 2,
           "pad_token_id": 0}  # fmt: skip
_DECODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 24, **_SHARED}  # fmt: skip
_LATENT = {**_DECODER, "num_key_value_heads": 4, "moe_intermediate_size": 12, "n_routed_experts": 4,
           "num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": 6, "kv_lora_rank": 10,
           "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 6}  # fmt: skip
_QWEN = {**_DECODER, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {**_DECODER, "num_local_experts": 4}),
    "olmoe": ("OlmoeConfig", {**_DECODER, "num_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeConfig", {**_QWEN, "shared_expert_intermediate_size": 20}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_QWEN, "head_dim": 6}),
    "deepseek_v2": ("DeepseekV2Config", _LATENT),
    "deepseek_v3": ("DeepseekV3Config", {**_LATENT, "n_group": 2, "topk_group": 1}),
    "gpt_oss": (
        "GptOssConfig",
        {**_DECODER, "head_dim": 6, "num_local_experts": 4, "num_experts_per_tok": 2,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "mamba": ("MambaConfig", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 3}),
    "mamba2": (
        "Mamba2Config",
        {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 2,
         "chunk_size": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    # One layer of each kind: mamba with an MLP, attention with experts, mamba with an MLP, mamba with experts.
    "jamba": (
        "JambaConfig",
        {**_DECODER, "num_hidden_layers": 4, "num_experts": 4, "attn_layer_period": 4, "attn_layer_offset": 1,
         "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 3},
    ),
}  # fmt: skip

_HEADS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
_ALL_HEADS = (*_HEADS, "ForQuestionAnswering")


FAMILIES: tuple[Family, ...] = (
    *(Family("mixtral", f"Mixtral{head}") for head in _ALL_HEADS),
    Family("mixtral", "MixtralForCausalLM", {"tie_word_embeddings": True}, "tied"),
    *(Family("olmoe", f"Olmoe{head}") for head in ("Model", "ForCausalLM")),
    Family("olmoe", "OlmoeForCausalLM", {"attention_bias": True}, "biases"),
    *(Family("qwen2_moe", f"Qwen2Moe{head}") for head in _ALL_HEADS),
    Family("qwen2_moe", "Qwen2MoeForCausalLM", {"mlp_only_layers": [1]}, "dense"),
    Family("qwen2_moe", "Qwen2MoeForCausalLM", {"qkv_bias": False, "tie_word_embeddings": True}, "tied"),
    *(Family("qwen3_moe", f"Qwen3Moe{head}") for head in _ALL_HEADS),
    Family("qwen3_moe", "Qwen3MoeForCausalLM", {"mlp_only_layers": [0], "attention_bias": True}, "dense"),
    Family("qwen3_moe", "Qwen3MoeForCausalLM", {"decoder_sparse_step": 2, "tie_word_embeddings": True}, "sparse-step"),
    *(
        Family("deepseek_v2", f"DeepseekV2{head}")
        for head in ("Model", "ForCausalLM", "ForSequenceClassification")
    ),
    *(Family("deepseek_v3", f"DeepseekV3{head}") for head in _HEADS),
    *(
        Family(kind, f"{name}ForCausalLM", config, note)
        for kind, name in (("deepseek_v2", "DeepseekV2"), ("deepseek_v3", "DeepseekV3"))
        for note, config in (
            ("one-query", {"q_lora_rank": None}),
            ("biases", {"attention_bias": True}),
            ("all-dense", {"first_k_dense_replace": 2, "tie_word_embeddings": True}),
        )
    ),
    Family("deepseek_v2", "DeepseekV2ForCausalLM", {"mlp_bias": True}, "mlp-biases"),
    *(Family("gpt_oss", f"GptOss{head}") for head in _HEADS),
    Family("gpt_oss", "GptOssForCausalLM", {"attention_bias": False, "tie_word_embeddings": True}, "tied"),
    *(Family("mamba", cls) for cls in ("MambaModel", "MambaForCausalLM")),
    Family("mamba", "MambaForCausalLM", {"use_bias": True, "tie_word_embeddings": False}, "untied"),
    Family("mamba", "MambaForCausalLM", {"time_step_rank": "auto", "use_conv_bias": False}, "auto"),
    *(Family("mamba2", cls) for cls in ("Mamba2Model", "Mamba2ForCausalLM")),
    Family("mamba2", "Mamba2ForCausalLM", {"use_bias": True, "tie_word_embeddings": True}, "tied"),
    *(
        Family("jamba", f"Jamba{head}", config, note)
        for head, config, note in (
            ("Model", {}, ""),
            ("ForCausalLM", {}, ""),
            ("ForSequenceClassification", {}, ""),
            ("ForCausalLM", {"mamba_proj_bias": True, "tie_word_embeddings": True}, "tied"),
            ("ForCausalLM", {"num_experts": 1, "num_experts_per_tok": 1}, "without-experts"),
        )
    ),
)  # fmt: skip
