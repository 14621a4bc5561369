"""Longformer and LED: attention to a window, with projections of its own for the tokens that see everything."""

from surgery import Architecture, hookimpl

_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def _both(path: str) -> dict[str, tuple[str, ...]]:
    return {f"attention.{role}": (f"{path}.{role}", f"{path}.{role}_global") for role in ("query", "key", "value")}


_WINDOW = _both("*.self_attn.longformer_self_attn")

LONGFORMER = Architecture(
    types=("longformer",),
    base="longformer",
    stacks={"encoder": "encoder.layer"},
    roles={
        "embedding.token": "embeddings.word_embeddings",
        "embedding.position": "embeddings.position_embeddings",
        "embedding.token_type": "embeddings.token_type_embeddings",
        "norm.embedding": "embeddings.LayerNorm",
        **_both("*.attention.self"),
        "attention.output": "*.attention.output.dense",
        "norm.attention.post": "*.attention.output.LayerNorm",
        "mlp.up": "*.intermediate.dense",
        "mlp.down": "*.output.dense",
        "norm.mlp.post": "*.output.LayerNorm",
        "head.transform": "pooler.dense",
    },
    heads={
        "head.transform": ("lm_head.dense", "classifier.dense"),
        "norm.head": "lm_head.layer_norm",
        "head.lm": ("lm_head.decoder", "lm_head"),
        "head.classifier": ("classifier.out_proj", "classifier", "qa_outputs"),
    },
    ties={
        "lm_head.decoder.weight": "longformer.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    files=_OLD_NAMES,
)

LED = Architecture(
    types=("led",),
    base="led",
    stacks={"encoder": "encoder.layers", "decoder": "decoder.layers"},
    roles={
        "embedding.token": ("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
        "embedding.position": ("encoder.embed_positions", "decoder.embed_positions"),
        "norm.embedding": ("encoder.layernorm_embedding", "decoder.layernorm_embedding"),
        **{role: (*paths, f"*.self_attn.{role[10]}_proj") for role, paths in _WINDOW.items()},
        "attention.output": ("*.self_attn.output", "*.self_attn.out_proj"),
        "norm.attention.post": "*.self_attn_layer_norm",
        **{f"cross_attention.{role}": f"*.encoder_attn.{role[0]}_proj" for role in ("query", "key", "value")},
        "cross_attention.output": "*.encoder_attn.out_proj",
        "norm.cross_attention.post": "*.encoder_attn_layer_norm",
        "mlp.up": "*.fc1",
        "mlp.down": "*.fc2",
        "norm.mlp.post": "*.final_layer_norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "qa_outputs"},
    ties={
        **{f"led.{name}.embed_tokens.weight": "led.shared.weight" for name in ("encoder", "decoder")},
        **{f"{name}.embed_tokens.weight": "shared.weight" for name in ("encoder", "decoder")},
        "lm_head.weight": "led.shared.weight",
    },
    ignored=("final_logits_bias",),  # a buffer
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [LONGFORMER, LED]
