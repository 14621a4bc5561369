"""T5 and its kin: a block is a list of sublayers, and the decoder's has one more; Switch Transformers have experts."""

from surgery import Architecture, hookimpl

_MLP = ("encoder:*.layer.1.DenseReluDense", "decoder:*.layer.2.DenseReluDense")
_TIES = {
    f"{prefix}{alias}.weight": f"{prefix}shared.weight"
    for prefix in ("", "transformer.")
    for alias in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    if not (prefix and alias == "lm_head")
}

_QKVO = ("query", "key", "value", "output")
_KINDS = tuple(f"*.layer.0.{kind}SelfAttention" for kind in ("", "Local", "TransientGlobal"))
_SPARSE = ("encoder:*.layer.1.mlp", "decoder:*.layer.2.mlp")
_SHARED: dict[str, str | tuple[str, ...]] = {
    "embedding.token": ("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
    "norm.attention.pre": "*.layer.0.layer_norm",
    "norm.cross_attention.pre": "decoder:*.layer.1.layer_norm",
    **{f"cross_attention.{role}": f"*.layer.1.EncDecAttention.{role[0]}" for role in _QKVO},
    "norm.mlp.pre": ("encoder:*.layer.1.layer_norm", "decoder:*.layer.2.layer_norm"),
    "norm.final": ("encoder.final_layer_norm", "decoder.final_layer_norm"),
}

T5 = Architecture(
    types=("t5", "mt5", "umt5"),
    base="transformer",  # of two task classes only; the others have no base model inside
    stacks={"encoder": "encoder.block", "decoder": "decoder.block"},
    roles={
        "embedding.token": ("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
        "embedding.relative": "*.layer.0.SelfAttention.relative_attention_bias",
        "norm.attention.pre": "*.layer.0.layer_norm",
        "attention.query": "*.layer.0.SelfAttention.q",
        "attention.key": "*.layer.0.SelfAttention.k",
        "attention.value": "*.layer.0.SelfAttention.v",
        "attention.output": "*.layer.0.SelfAttention.o",
        "norm.cross_attention.pre": "decoder:*.layer.1.layer_norm",
        "cross_attention.query": "*.layer.1.EncDecAttention.q",
        "cross_attention.key": "*.layer.1.EncDecAttention.k",
        "cross_attention.value": "*.layer.1.EncDecAttention.v",
        "cross_attention.output": "*.layer.1.EncDecAttention.o",
        "norm.mlp.pre": ("encoder:*.layer.1.layer_norm", "decoder:*.layer.2.layer_norm"),
        "mlp.gate": tuple(f"{path}.wi_0" for path in _MLP),
        "mlp.up": tuple(f"{path}.{name}" for path in _MLP for name in ("wi", "wi_1")),
        "mlp.down": tuple(f"{path}.wo" for path in _MLP),
        "norm.final": ("encoder.final_layer_norm", "decoder.final_layer_norm"),
    },
    heads={
        "head.lm": "lm_head",
        "head.transform": "classification_head.dense",
        "head.classifier": ("classification_head.out_proj", "classifier", "qa_outputs"),
    },
    ties=_TIES,
)


LONG_T5 = Architecture(
    types=("longt5",),
    base="",
    stacks={"encoder": "encoder.block", "decoder": "decoder.block"},
    roles={
        **_SHARED,
        **{f"attention.{role}": tuple(f"{path}.{role[0]}" for path in _KINDS) for role in _QKVO},
        "embedding.relative": (
            *(f"{path}.relative_attention_bias" for path in _KINDS),
            f"{_KINDS[2]}.global_relative_attention_bias",
        ),
        "mlp.gate": tuple(f"{path}.wi_0" for path in _MLP),
        "mlp.up": tuple(f"{path}.{name}" for path in _MLP for name in ("wi", "wi_1")),
        "mlp.down": tuple(f"{path}.wo" for path in _MLP),
    },
    heads={"head.lm": "lm_head"},
    ties=_TIES,
    plain=(f"{_KINDS[2]}.global_input_layer_norm",),  # of the means that stand for blocks of tokens
)

SWITCH = Architecture(
    types=("switch_transformers",),
    base="",
    stacks={"encoder": "encoder.block", "decoder": "decoder.block"},
    roles={
        **_SHARED,
        **{f"attention.{role}": f"{_KINDS[0]}.{role[0]}" for role in _QKVO},
        "embedding.relative": f"{_KINDS[0]}.relative_attention_bias",
        "mlp.up": tuple(f"{path}.wi" for path in _SPARSE),
        "mlp.down": tuple(f"{path}.wo" for path in _SPARSE),
        "moe.router": tuple(f"{path}.router.classifier" for path in _SPARSE),
        "moe.experts.up": "*.layer.*.mlp.experts.*.wi",
        "moe.experts.down": "*.layer.*.mlp.experts.*.wo",
    },
    heads={"head.lm": "lm_head"},
    ties=_TIES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [T5, LONG_T5, SWITCH]
