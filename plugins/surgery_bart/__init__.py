"""BART, which normalises what a block puts out, and mBART and Pegasus, which normalise what it takes in."""

from surgery import Architecture, hookimpl

_BODY: dict[str, str | tuple[str, ...]] = {
    "embedding.token": ("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
    "embedding.position": ("encoder.embed_positions", "decoder.embed_positions"),
    "norm.embedding": ("encoder.layernorm_embedding", "decoder.layernorm_embedding"),
    "attention.query": "*.self_attn.q_proj",
    "attention.key": "*.self_attn.k_proj",
    "attention.value": "*.self_attn.v_proj",
    "attention.output": "*.self_attn.out_proj",
    "cross_attention.query": "*.encoder_attn.q_proj",
    "cross_attention.key": "*.encoder_attn.k_proj",
    "cross_attention.value": "*.encoder_attn.v_proj",
    "cross_attention.output": "*.encoder_attn.out_proj",
    "mlp.up": "*.fc1",
    "mlp.down": "*.fc2",
}
_HEADS: dict[str, str | tuple[str, ...]] = {
    "head.lm": "lm_head",
    "head.transform": "classification_head.dense",
    "head.classifier": ("classification_head.out_proj", "qa_outputs"),
}
_STACKS = {"encoder": "encoder.layers", "decoder": "decoder.layers"}
_TIES: dict[str, str | tuple[str, ...]] = {
    f"{prefix}{alias}.weight": f"{prefix}shared.weight"
    for prefix in ("", "model.")
    for alias in ("encoder.embed_tokens", "decoder.embed_tokens")
} | {"lm_head.weight": ("model.shared.weight", "model.decoder.embed_tokens.weight")}


def _norms(place: str) -> dict[str, str]:
    return {
        f"norm.attention.{place}": "*.self_attn_layer_norm",
        f"norm.cross_attention.{place}": "*.encoder_attn_layer_norm",
        f"norm.mlp.{place}": "*.final_layer_norm",
    }


BART = Architecture(
    types=("bart",),
    base="model",
    stacks=_STACKS,
    roles={**_BODY, **_norms("post")},
    heads=_HEADS,
    ties=_TIES,
    ignored=("final_logits_bias",),
)

MBART = Architecture(
    types=("mbart", "pegasus"),
    base="model",
    stacks=_STACKS,
    roles={**_BODY, **_norms("pre"), "norm.final": ("encoder.layer_norm", "decoder.layer_norm")},
    heads=_HEADS,
    ties=_TIES,
    ignored=("final_logits_bias",),
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [BART, MBART]
