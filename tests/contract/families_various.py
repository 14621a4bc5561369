"""Tiny models with a second stream, experts one below the other, patches of bytes, or images before the text."""

from __future__ import annotations

from typing import Any

import torch
from family import Family

__all__ = ["CONFIGS", "FAMILIES"]

_BERT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 20, "pad_token_id": 1,
}  # fmt: skip
_BYTES: dict[str, Any] = {
    "vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32, "hidden_size_global": 24,
}  # fmt: skip

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "doge": (
        "DogeConfig",
        {**_BERT, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "keep_window_size": 4,
         "num_experts": 9, "num_experts_per_tok": 2},
    ),
    "xmod": ("XmodConfig", {**_BERT, "languages": ["en_XX"], "default_language": "en_XX"}),
    "lilt": ("LiltConfig", {**_BERT, "hidden_size": 24, "max_2d_position_embeddings": 12}),
    "git": (
        "GitConfig",
        {**_BERT, "vision_config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                                    "intermediate_size": 20, "image_size": 8, "patch_size": 4}},
    ),
    "dbrx": (
        "DbrxConfig",
        {"d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 20,
         "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
         "ffn_config": {"ffn_hidden_size": 12, "moe_num_experts": 3, "moe_top_k": 2}},
    ),
    "nllb-moe": (
        "NllbMoeConfig",
        {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "num_experts": 2,
         "encoder_sparse_step": 2, "decoder_sparse_step": 2, "max_position_embeddings": 20},
    ),
    "neomme": (
        "NeoMMEConfig",
        {**_BERT, "embedding_rank": 6, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 3, "patch_size": 2,
         "embedding_dim": 5, "pad_token_id": 0, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "zaya": (
        "ZayaConfig",
        {**_BERT, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 12,
         "num_experts": 3, "router_hidden_size": 6, "experts_implementation": "eager",
         "pad_token_id": 0, "eos_token_id": 2},
    ),
    "prophetnet": (
        "ProphetNetConfig",
        {"hidden_size": 16, "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 2,
         "num_decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "max_position_embeddings": 20,
         "num_buckets": 6, "relative_max_distance": 9},
    ),
    "blt": (
        "BltConfig",
        {"use_cache": False, "encoder_hash_byte_group_vocab": 11, "encoder_hash_byte_group_size": [2, 3], "patching_threshold": 3.3,
         "encoder_config": _BYTES, "decoder_config": _BYTES, "patcher_config": {**_BYTES, "num_hidden_layers": 1},
         "global_config": {**_BYTES, "hidden_size": 24}},
    ),
}  # fmt: skip

_Batch = dict[str, torch.Tensor]


def _decoded(batch: _Batch) -> _Batch:
    return {**batch, "decoder_input_ids": batch["input_ids"].flip(1)}


def _choices(batch: _Batch) -> _Batch:
    """(questions, choices, words) for multiple choice."""
    return {name: tensor[:, None].repeat(1, 2, *(1,) * (tensor.dim() - 1)) for name, tensor in batch.items()}


def _boxes(batch: _Batch) -> _Batch:
    """Each word in a box of its own."""
    left = torch.arange(batch["input_ids"].shape[1])
    boxes = torch.stack((left, left // 2, left + 4, left // 2 + 3), -1)
    return {**batch, "bbox": boxes.expand(len(batch["input_ids"]), -1, -1)}


def _image(batch: _Batch) -> _Batch:
    pixels = torch.randn(len(batch["input_ids"]), 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {**batch, "pixel_values": pixels}


def _images(batch: _Batch) -> _Batch:
    """Two images before each text."""
    pixels = _image(batch)["pixel_values"]
    return {**batch, "pixel_values": torch.stack((pixels, pixels.flip(0)), 1)}


def _patches(batch: _Batch) -> _Batch:
    """Each text with two patches of an image in the place of two tokens."""
    ids = batch["input_ids"].masked_fill(torch.isin(batch["input_ids"], torch.tensor([5, 6])), 7)
    ids[:, 1:3] = 6
    pixels = torch.randn(2 * len(ids), 12, generator=torch.Generator().manual_seed(1))
    return {**batch, "input_ids": ids, "pixel_values": pixels}


def _languages(batch: _Batch) -> _Batch:
    """The texts are in two languages."""
    return {**batch, "lang_ids": torch.arange(len(batch["input_ids"]))}


_XMOD_HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")

FAMILIES: tuple[Family, ...] = (
    *(Family("doge", f"Doge{head}") for head in ("Model", "ForCausalLM", "ForSequenceClassification")),
    Family("doge", "DogeForCausalLM", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, "biases"),
    *(Family("xmod", f"Xmod{head}") for head in _XMOD_HEADS),
    Family("xmod", "XmodForMultipleChoice", batch=_choices),
    Family("xmod", "XmodForCausalLM", {"is_decoder": True}),
    Family("xmod", "XmodModel", {"pre_norm": True, "adapter_layer_norm": True}, "norms-first"),
    Family("xmod", "XmodModel", {"languages": ["en_XX", "de_DE"], "default_language": None}, "languages", batch=_languages),
    *(
        Family("lilt", f"Lilt{head}", batch=_boxes)
        for head in ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    ),
    *(Family("git", f"Git{head}", batch=_image) for head in ("Model", "ForCausalLM")),
    Family("git", "GitForCausalLM", {"num_image_with_embedding": 2, "tie_word_embeddings": True}, "images", batch=_images),
    *(Family("dbrx", f"Dbrx{head}") for head in ("Model", "ForCausalLM")),
    *(Family("nllb-moe", f"NllbMoe{head}", batch=_decoded) for head in ("Model", "ForConditionalGeneration")),
    Family("nllb-moe", "NllbMoeForConditionalGeneration", {"router_bias": True, "encoder_sparse_step": 1}, "biases", batch=_decoded),
    *(Family("neomme", f"NeoMME{head}", batch=_patches) for head in ("Model", "ForMaskedLM", "ForRetrieval")),
    Family("neomme", "NeoMMEForMaskedLM", {"tie_word_embeddings": False, "attention_bias": True}, "untied", batch=_patches),
    *(Family("prophetnet", f"ProphetNet{head}", batch=_decoded) for head in ("Model", "ForConditionalGeneration")),
    Family("prophetnet", "ProphetNetForCausalLM", {"add_cross_attention": False}),
    *(Family("zaya", f"Zaya{head}", {"use_cache": False}) for head in ("Model", "ForCausalLM")),
    *(Family("blt", f"Blt{head}") for head in ("Model", "ForCausalLM")),
)  # fmt: skip
