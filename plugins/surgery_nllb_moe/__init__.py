"""NLLB with experts: mBART's layers, and in some of them experts, a module each, in place of the MLP."""

from surgery import Architecture, hookimpl

_TIES = {
    f"{prefix}{alias}.weight": f"{prefix}shared.weight"
    for prefix in ("", "model.")
    for alias in ("encoder.embed_tokens", "decoder.embed_tokens")
} | {"lm_head.weight": "model.shared.weight"}

NLLB_MOE = Architecture(
    types=("nllb-moe",),
    base="model",
    stacks={"encoder": "encoder.layers", "decoder": "decoder.layers"},
    roles={
        "embedding.token": ("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
        "norm.attention.pre": "*.self_attn_layer_norm",
        **{f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("query", "key", "value")},
        "attention.output": "*.self_attn.out_proj",
        "norm.cross_attention.pre": "*.cross_attention_layer_norm",
        **{f"cross_attention.{role}": f"*.cross_attention.{role[0]}_proj" for role in ("query", "key", "value")},
        "cross_attention.output": "*.cross_attention.out_proj",
        "norm.mlp.pre": "*.ff_layer_norm",
        "mlp.up": "*.ffn.fc1",
        "mlp.down": "*.ffn.fc2",
        "moe.router": "*.ffn.router.classifier",
        "moe.experts.up": "*.ffn.experts.*.fc1",
        "moe.experts.down": "*.ffn.experts.*.fc2",
        "norm.final": ("encoder.layer_norm", "decoder.layer_norm"),
    },
    heads={"head.lm": "lm_head"},
    ties=_TIES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [NLLB_MOE]
