"""Falcon: one fused query-key-value weight with three layouts, which the configuration chooses among."""

from surgery import Architecture, Slice, When, hookimpl

_QKV = "*.self_attention.query_key_value"
_GROUPED = ("num_kv_heads", "num_attention_heads // num_kv_heads + 2", -1)  # a group's queries, its key, its value
_FLAT = ("num_attention_heads + 2", -1)  # all queries, the one key, the one value
_BY_HEAD = ("num_attention_heads", 3, -1)


def _qkv(index: int) -> tuple[When, ...]:
    in_group, in_all = "num_attention_heads // num_kv_heads", "num_attention_heads"
    grouped, flat = (
        ((0, in_group), (0, in_all))
        if not index
        else ((f"{in_group} + {index - 1}", 1), (f"{in_all} + {index - 1}", 1))
    )
    return (
        When(Slice(_QKV, _GROUPED, 1, *grouped), {"new_decoder_architecture": True}),
        When(Slice(_QKV, _FLAT, 0, *flat), {"new_decoder_architecture": False, "multi_query": True}),
        When(Slice(_QKV, _BY_HEAD, 1, index), {"new_decoder_architecture": False, "multi_query": False}),
    )


FALCON = Architecture(
    types=("falcon",),
    base="transformer",
    stacks={"decoder": "h"},
    roles={
        "embedding.token": "word_embeddings",
        # Without a norm of its own the MLP reads what this one gives to the attention.
        "norm.attention.pre": ("*.input_layernorm", "*.ln_attn"),
        "attention.query": _qkv(0),
        "attention.key": _qkv(1),
        "attention.value": _qkv(2),
        "attention.output": "*.self_attention.dense",
        "norm.mlp.pre": ("*.post_attention_layernorm", "*.ln_mlp"),
        "mlp.up": "*.mlp.dense_h_to_4h",
        "mlp.down": "*.mlp.dense_4h_to_h",
        "norm.final": "ln_f",
    },
    heads={"head.lm": "lm_head", "head.classifier": ("score", "classifier", "qa_outputs")},
    ties={"lm_head.weight": "transformer.word_embeddings.weight"},
    defaults={"new_decoder_architecture": False, "multi_query": True, "num_kv_heads": "num_attention_heads"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [FALCON]
