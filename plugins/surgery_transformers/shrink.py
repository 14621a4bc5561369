"""A configuration with every size made small and every choice kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["SIZES", "Size", "names_of_sizes", "shrunken"]


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes of a small model: heads, groups of keys and values, width of a head, and of an MLP."""

    heads: int
    groups: int
    head: int
    inner: int

    @property
    def hidden(self) -> int:
        return self.heads * self.head


SIZES = (Size(heads=4, groups=2, head=16, inner=96), Size(heads=12, groups=3, head=8, inner=112))
"""Two sizes with no proportion in common, so that a layout that fits both is no coincidence."""

_VOCABULARY = 96
_LAYERS = 2

_HEADS = (
    "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
    "attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads", "linear_num_value_heads",
    "linear_num_key_heads", "num_self_attention_heads", "num_cross_attention_heads",
)  # fmt: skip
_GROUPS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "num_kv_groups")
_HEAD = (
    "head_dim", "dim_head", "d_kv", "d_head", "attention_head_dim", "kv_channels", "attention_head_size",
    "swa_head_dim", "global_head_dim", "linear_key_head_dim", "linear_value_head_dim", "v_head_dim", "qk_rope_head_dim",
    "mamba_d_head",
)  # fmt: skip
_HIDDEN = (
    "hidden_size", "d_model", "n_embd", "n_embed", "dim", "embed_dim", "emb_dim", "embedding_size", "model_dim",
    "dim_model", "word_embed_proj_dim", "true_hidden_size", "decoder_hidden_size", "encoder_hidden_size",
    "attention_hidden_size", "lru_width", "output_hidden_size", "out_hidden_size", "projection_dim", "embedding_dim",
    "hidden_dim", "d_latents",
)  # fmt: skip
_INNER = (
    "intermediate_size", "ffn_dim", "d_ff", "dff", "n_inner", "d_inner", "encoder_ffn_dim", "decoder_ffn_dim",
    "ffn_hidden_size", "inner_dim", "dense_ffn_hidden_size", "dim_ff", "feed_forward_size", "intermediate_size_mlp",
)  # fmt: skip
_EXPERT_INNER = (
    "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size", "expert_ffn_hidden_size",
    "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size",
)  # fmt: skip
_DEPTH = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
    "num_decoder_layers", "num_blocks", "depth", "num_self_attends_per_block",
    "num_layers_per_stack",
)  # fmt: skip
_STATE_HEADS = ("mamba_n_heads",)
_WORDS = ("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "src_vocab_size", "tgt_vocab_size")
_SPREADS = ("initializer_range", "initializer_factor", "init_std")
_KINDS_OF_LAYERS = ("layer_types", "layers_block_type", "block_types")
_AT_MOST: Mapping[str, int] = {
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64, "max_sequence_length": 64,
    "max_target_positions": 64, "max_source_positions": 64, "max_2d_position_embeddings": 64,
    "sliding_window": 64, "window_size": 64, "attention_chunk_size": 64,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_topk": 2, "moe_k": 2, "moe_top_k": 2, "top_k_experts": 2,
    "n_group": 1, "topk_group": 1, "num_group": 1, "first_k_dense_replace": 1, "num_dense_layers": 1,
    "n_shared_experts": 1,
    "num_nextn_predict_layers": 0, "qk_nope_head_dim": 16, "q_lora_rank": 40, "kv_lora_rank": 24,
    "rotary_dim": 4, "entity_vocab_size": 32, "entity_emb_size": 32, "index_head_dim": 16, "index_n_heads": 4,
    "image_size": 32, "patch_size": 8, "chunk_size": 8, "mamba_chunk_size": 8,
    "num_latents": 8, "encoder_hash_byte_group_vocab": 64, "prompt_length": 2, "prompt_types": 4, "segment_types": 4,
}  # fmt: skip


def shrunken(table: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Return a configuration's settings, parts included, with small sizes.

    Whether keys and values have fewer heads than queries, and what kinds of layers there are, stays as it is.
    """
    heads = _first(table, _HEADS)
    keep = _layers_to_keep(table)
    depth = _first(table, _DEPTH)
    small: dict[str, Any] = {}
    for key, value in table.items():
        if key in _SPREADS and isinstance(value, float) and not math.isfinite(value):
            continue  # no weight is drawn by it: small models get weights of their own
        if key == "per_layer_config" and isinstance(value, Mapping):  # of layers that differ, by their numbers
            layers = {int(index): settings for index, settings in value.items()}
            kept = {place: layers[index] for place, index in enumerate(keep) if index in layers}
            small[key] = {place: shrunken(settings, size) for place, settings in kept.items()}
        elif isinstance(value, Mapping):
            is_labels = key in ("id2label", "label2id")
            small[key] = value if is_labels else _rope(value) if key.startswith("rope") else shrunken(value, size)
        elif isinstance(value, list) and depth > _LAYERS and len(value) == depth:
            small[key] = [value[index] for index in keep]
        elif type(value) is int and value > 0:
            small[key] = _small(key, value, size, heads, len(keep))
        else:
            small[key] = copy.deepcopy(value)
    return small


def _small(key: str, value: int, size: Size, heads: int, layers: int) -> int:
    if key in _GROUPS:
        return size.heads if value == heads else 1 if value == 1 else size.groups
    for keys, instead in (
        (_HEADS, size.heads),
        (_HEAD, size.head),
        (_HIDDEN, size.hidden),
        (_INNER, size.inner),
        (_EXPERT_INNER, size.inner // 2),
        (_WORDS, _VOCABULARY),
        (_STATE_HEADS, 2 * size.heads),  # a state space is twice as wide as the model
    ):
        if key in keys:
            return instead
    if key in _DEPTH:
        return min(value, layers)
    if key in _AT_MOST:
        return min(value, _AT_MOST[key])
    if key.endswith(("_token_id", "_token_index")) and value >= _VOCABULARY:
        return 0 if key.startswith("pad") else _VOCABULARY - 1
    return value


def _layers_to_keep(table: Mapping[str, Any]) -> Sequence[int]:
    """Return which layers stay: two, or the first of each kind."""
    depth = _first(table, _DEPTH)
    kinds = next((table[key] for key in _KINDS_OF_LAYERS if isinstance(table.get(key), list)), ())
    first: dict[str, int] = {}
    for index, kind in enumerate(kinds if len(kinds) == depth else ()):
        first.setdefault(str(kind), index)
    kept = sorted(first.values())
    return kept if len(kept) > 1 else list(range(min(_LAYERS, depth) if depth else _LAYERS))


def _rope(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of rotary embeddings without what stretches them over long texts."""
    if "rope_theta" in value or "rope_type" in value:
        kept = {key: value[key] for key in ("rope_theta", "partial_rotary_factor") if key in value}
        return {"rope_type": "default", **kept}
    return {key: _rope(inner) if isinstance(inner, Mapping) else inner for key, inner in value.items()}


def _first(table: Mapping[str, Any], keys: Sequence[str]) -> int:
    return next((table[key] for key in keys if type(table.get(key)) is int and table[key] > 0), 0)


def names_of_sizes(table: Mapping[str, Any]) -> dict[str, str]:
    """Return `heads`, `groups` and `head` -> the configuration's name for it, or an expression of its names."""
    names: dict[str, str] = {}
    attention = [key for key in _HEAD if not key.startswith(("linear_", "mamba_", "swa_", "global_"))]
    for what, keys in (("heads", _HEADS), ("groups", _GROUPS), ("head", attention)):
        found = next((key for key in keys if type(table.get(key)) is int and table[key] > 0), "")
        if found:
            names[what] = found
    hidden = next((key for key in _HIDDEN if type(table.get(key)) is int), "")
    if "head" not in names and "heads" in names and hidden:
        names["head"] = f"{hidden} // {names['heads']}"
    return names
