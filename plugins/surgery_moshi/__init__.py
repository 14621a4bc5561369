"""Moshi's language model: the Llama shape with projections one module deeper, and a fused MLP."""

from surgery import Architecture, Slice, hookimpl


def _half(start: int) -> Slice:
    return Slice("*.mlp.fc1", view=(2, -1), start=start)


MOSHI = Architecture(
    types=("moshi",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",
        **{f"attention.{role}": f"*.self_attn.{role[0]}_proj.linear" for role in ("query", "key", "value", "output")},
        "norm.mlp.pre": "*.post_attention_layernorm",
        "mlp.gate": _half(0),
        "mlp.up": _half(1),
        "mlp.down": "*.mlp.fc2",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [MOSHI]
