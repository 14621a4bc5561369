"""DBRX: one fused weight of grouped-query attention, and experts one below the other in 2-D weights."""

from surgery import Architecture, Slice, hookimpl

_HEADS = ("num_attention_heads + 2 * attn_config.kv_n_heads", -1)


def _heads(start: int | str, length: str) -> Slice:
    return Slice("*.norm_attn_norm.attn.Wqkv", _HEADS, 0, start, length)


DBRX = Architecture(
    types=("dbrx",),
    base="transformer",
    stacks={"decoder": "blocks"},
    roles={
        "embedding.token": "wte",
        "norm.attention.pre": "*.norm_attn_norm.norm_1",
        "attention.query": _heads(0, "num_attention_heads"),
        "attention.key": _heads("num_attention_heads", "attn_config.kv_n_heads"),
        "attention.value": _heads("num_attention_heads + attn_config.kv_n_heads", "attn_config.kv_n_heads"),
        "attention.output": "*.norm_attn_norm.attn.out_proj",
        "norm.mlp.pre": "*.norm_attn_norm.norm_2",
        "moe.router": "*.ffn.router.layer",
        "moe.experts.gate": "*.ffn.experts.mlp.w1",  # (experts * inner, width), as the next two
        "moe.experts.up": "*.ffn.experts.mlp.v1",
        "moe.experts.down": "*.ffn.experts.mlp.w2",
        "norm.final": "norm_f",
    },
    heads={"head.lm": "lm_head"},
    defaults={"num_attention_heads": "n_heads", "attn_config.kv_n_heads": 1},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [DBRX]
