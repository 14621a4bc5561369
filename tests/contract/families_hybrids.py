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
_VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "patch_size": 2, "out_hidden_size": 16,
           "temporal_patch_size": 1, "spatial_merge_size": 2, "num_position_embeddings": 16}  # fmt: skip
_SEEN = {"vision_config": _VISION, "image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("Qwen3NextConfig", {**_DELTA, **_MOE}),
    "qwen3_5_text": ("Qwen3_5TextConfig", _DELTA),
    "qwen3_5_moe_text": ("Qwen3_5MoeTextConfig", {**_DELTA, **_MOE}),
    "qwen3_5": ("Qwen3_5Config", {"text_config": {"vocab_size": 37, **_DELTA}, **_SEEN}),
    "qwen3_5_moe": ("Qwen3_5MoeConfig", {"text_config": {"vocab_size": 37, **_DELTA, **_MOE}, **_SEEN}),
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
    *(Family("qwen3_5_moe", f"Qwen3_5Moe{head}", batch=_images) for head in ("Model", "ForConditionalGeneration")),
)  # fmt: skip
