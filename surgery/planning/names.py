"""What names of modules say about roles: packs of patterns, the special ones first. No fused weight is cut by name.

A pattern is matched in full against the path of a module (or of a parameter) inside its layer. Everything here is
checked by shape afterwards (`surgery.planning.infer`); a name alone is a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["FUSED", "IN_LAYERS", "OUTSIDE", "Fused", "named", "splits", "starred"]


@dataclass(frozen=True, slots=True)
class Fused:
    """A name whose weight holds several roles, or may: what they are is not told by the name."""

    roles: tuple[str, ...]


_SELF = (
    r"(?:self_attn|self_attention|attention|attn|mixer|attention\.self|attn\.attention|attention\.attn|"
    r"attention\.attention|attention\.self_attention|layer\.\d+\.SelfAttention|temporal_block|self_attn\.self)"
)
_CROSS = (
    r"(?:encoder_attn|cross_attn|cross_attention|encoder_attention|crossattention|crossattention\.self|"
    r"crossattention\.attention|layer\.\d+\.EncDecAttention)"
)
_MLP = r"(?:mlp|ffn|feed_forward|ff|feedforward|block_sparse_moe|layer\.\d+\.DenseReluDense|layer\.\d+\.mlp)"
_SHARED = (
    r"(?:mlp|feed_forward|mixer|block_sparse_moe|moe|ffn)\.(?:shared_experts?|shared_mlp)|shared_mlp|shared_experts?"
)
_SSM = r"(?:mixer|mamba|mamba_decoder\.mamba|ssm)"


def _projections(block: str, role: str) -> tuple[tuple[str, str], ...]:
    return (
        (rf"{block}\.(?:q_proj|query_proj|q_lin|q_head|query|q|to_q)", f"{role}.query"),
        (rf"{block}\.(?:k_proj|key_proj|k_lin|k_head|key|k|to_k)", f"{role}.key"),
        (rf"{block}\.(?:v_proj|value_proj|v_lin|v_head|value|v|to_v)", f"{role}.value"),
        (rf"{block}\.(?:o_proj|out_proj|out_lin|post_proj|dense|c_proj|o|Wo|to_out|wo)", f"{role}.output"),
        (rf"{block}\.output(?:\.dense)?", f"{role}.output"),
    )


_EXPERTS = (
    (rf"{_MLP}\.(?:gate|router|gate\.wg|router\.(?:layer|classifier|gate|linear))", "moe.router"),
    (r"(?:router|gate|mixer\.gate|moe\.(?:gate|router)|mlp\.moe\.(?:gate|router))", "moe.router"),
    (rf"(?:{_SHARED})\.gate_proj", "moe.shared.gate"),
    (rf"(?:{_SHARED})\.up_proj", "moe.shared.up"),
    (rf"(?:{_SHARED})\.down_proj", "moe.shared.down"),
    (r"mlp\.shared_expert_gate", "moe.shared_gate"),
)
_LATENT = (
    (r"self_attn\.q_a_proj", "attention.query_down"),
    (r"self_attn\.q_b_proj", "attention.query"),
)
_STATE_SPACE = (
    (rf"{_SSM}\.conv1d", "ssm.conv"),
    (rf"{_SSM}\.dt_proj", "ssm.dt"),
    (rf"{_SSM}\.out_proj", "ssm.output"),
    (r"linear_attn\.out_proj", "linear_attention.output"),
    (r"linear_attn\.in_proj_z", "linear_attention.gate"),
)
_FAMILIES = (
    *_projections(_CROSS, "cross_attention"),
    *_projections(_SELF, "attention"),
    (rf"(?:{_MLP}\.)?gate_proj", "mlp.gate"),
    (rf"(?:{_MLP}\.)?up_proj", "mlp.up"),
    (rf"(?:{_MLP}\.)?down_proj", "mlp.down"),
    (rf"{_MLP}\.(?:wi_0)", "mlp.gate"),
    (rf"{_MLP}\.(?:wi_1|wi|dense1)", "mlp.up"),
    (rf"(?:{_MLP}\.)?(?:fc1|fc_in|c_fc|dense_h_to_4h|lin1|linear_1|layer_1)", "mlp.up"),
    (rf"(?:{_MLP}\.)?(?:fc2|fc_out|c_proj|dense_4h_to_h|lin2|linear_2|layer_2)", "mlp.down"),
    (rf"{_MLP}\.(?:wo|dense2)", "mlp.down"),
    (r"(?:feed_forward\.)?intermediate(?:\.dense)?|feed_forward\.dense\.dense|ffn", "mlp.up"),
    (r"(?:feed_forward\.)?output(?:\.dense)?|ffn_output", "mlp.down"),
)

IN_LAYERS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), role) for pattern, role in (*_EXPERTS, *_LATENT, *_STATE_SPACE, *_FAMILIES)
)
"""(pattern, role), the first match wins: experts, latent attention, state spaces, then the common families."""

_QKV = ("attention.query", "attention.key", "attention.value")
FUSED: tuple[tuple[re.Pattern[str], Fused], ...] = tuple(
    (re.compile(pattern), Fused(roles))
    for pattern, roles in (
        (rf"{_SELF}\.(?:query_key_value|qkv_proj|qkv|c_attn|Wqkv|in_proj|W_pack|in_proj_weight|wqkv)", _QKV),
        (rf"{_SELF}\.(?:query_key|to_qk)", _QKV[:2]),
        (rf"{_SELF}\.(?:to_kv|kv_proj|key_value)", _QKV[1:]),
        (rf"{_CROSS}\.(?:c_attn|kv_proj)", ("cross_attention.key", "cross_attention.value")),
        (rf"{_MLP}\.(?:gate_up_proj|Wi|w12|gate_and_up_proj|input_linear)", ("mlp.gate", "mlp.up")),
        # w1, w2 and w3 mean gate, down and up here, and up, gate and down there.
        (rf"{_MLP}\.(?:w1|w2|w3)", ("mlp.gate", "mlp.up", "mlp.down")),
        (rf"(?:{_SHARED})\.(?:gate_up_proj|input_linear)", ("moe.shared.gate", "moe.shared.up")),
        (rf"{_SSM}\.in_proj", ("ssm.input", "ssm.gate", "ssm.B", "ssm.C", "ssm.dt")),
        (rf"{_SSM}\.x_proj", ("ssm.dt", "ssm.B", "ssm.C")),
        (
            r"linear_attn\.in_proj(?:_qkv|_qkvz)?",
            ("linear_attention.query", "linear_attention.key", "linear_attention.value", "linear_attention.gate"),
        ),
    )
)
"""Names of weights that hold several roles in a layout that differs between models of the same name."""

_HEADS = (
    (r"embed_tokens|word_embeddings|wte|embed_in|tok_embeddings|token_embedding", "embedding.token"),
    (r"embed_positions|position_embeddings|wpe|position_embedding", "embedding.position"),
    (r"token_type_embeddings", "embedding.token_type"),
    (r"lm_head|lm_head\.decoder|cls\.predictions\.decoder|embed_out|proj_out|output_projection", "head.lm"),
    (
        r"pooler\.dense|pre_classifier|classifier\.dense|classification_head\.dense|predictions\.transform\.dense|"
        r"lm_head\.dense",
        "head.transform",
    ),
    (r"score|classifier|qa_outputs|classifier\.out_proj|classification_head\.out_proj|logits_proj", "head.classifier"),
)
OUTSIDE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(rf"(?:.*\.)?(?:{pattern})"), role) for pattern, role in _HEADS
)
"""(pattern, role) for what stands outside of layers, by the end of the path."""


def named(path: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    """Return the role that the first matching pattern gives `path`, or None."""
    return next((role for pattern, role in table if pattern.fullmatch(path)), None)


def splits(path: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yield (path of the list with stars for outer numbers, indices, path inside) for each number in a path."""
    dotted = f".{path}."
    numbers = list(re.finditer(r"(?<=\.)\d+(?=\.)", dotted))
    for count, number in enumerate(numbers, 1):
        outer = re.sub(r"(?<=\.)\d+(?=\.)", "*", dotted[: number.start()]).strip(".")
        inside = dotted[number.end() :].strip(".")
        if outer and inside:
            yield outer, tuple(int(one[0]) for one in numbers[:count]), inside


def starred(path: str) -> str:
    """Return a path in a layer with a star for the layer's number, the first in it; "" outside of layers."""
    outer, _, inside = next(splits(path), ("", (), ""))
    return f"{outer}.*.{inside}" if outer else ""
