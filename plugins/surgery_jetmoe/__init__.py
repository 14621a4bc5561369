"""JetMoE: experts in attention too: each has a query and an output of its own, and all share keys and values."""

from surgery import Architecture, Slice, hookimpl


def _half(path: str, start: int, axis: int) -> Slice:
    return Slice(path, view=(2, -1), start=start, axis=axis)


JETMOE = Architecture(
    types=("jetmoe",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",
        "attention.query": "*.self_attention.experts.input_linear",
        "attention.key": _half("*.self_attention.kv_proj", 0, 0),
        "attention.value": _half("*.self_attention.kv_proj", 1, 0),
        "attention.output": ("*.self_attention.experts.output_linear", "*.self_attention.experts.bias"),
        "norm.mlp.pre": "*.post_attention_layernorm",
        "moe.router": ("*.self_attention.experts.router.layer", "*.mlp.router.layer"),
        "moe.experts.gate": _half("*.mlp.input_linear", 0, 1),
        "moe.experts.up": _half("*.mlp.input_linear", 1, 1),
        "moe.experts.down": ("*.mlp.output_linear", "*.mlp.bias"),
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [JETMOE]
