"""CLIP: a stack for text and one for images; each is a model of its own type, too."""

from surgery import Architecture, hookimpl

_LAYERS = {
    "norm.attention.pre": "*.layer_norm1",
    "attention.query": "*.self_attn.q_proj",
    "attention.key": "*.self_attn.k_proj",
    "attention.value": "*.self_attn.v_proj",
    "attention.output": "*.self_attn.out_proj",
    "norm.mlp.pre": "*.layer_norm2",
    "mlp.up": "*.mlp.fc1",
    "mlp.down": "*.mlp.fc2",
}
_TEXT = {
    "embedding.token": "embeddings.token_embedding",
    "embedding.position": "embeddings.position_embedding",
    "norm.final": "final_layer_norm",
}
_VISION = {
    "embedding.patch": "embeddings.patch_embedding",
    "embedding.class": "embeddings.class_embedding",
    "embedding.position": "embeddings.position_embedding",
    "norm.embedding": "pre_layrnorm",  # so spelt
    "norm.final": "post_layernorm",
}
_PARTS = (("text_model", _TEXT), ("vision_model", _VISION))
_BOTH = {
    role: tuple(f"{name}.{paths[role]}" for name, paths in _PARTS if role in paths)
    for role in dict.fromkeys([*_TEXT, *_VISION])
}
_HEADS: dict[str, str | tuple[str, ...]] = {
    "head.projection": ("text_projection", "visual_projection"),
    "head.classifier": "classifier",
}

CLIP = Architecture(
    types=("clip",),
    base="",
    stacks={"text": "text_model.encoder.layers", "vision": "vision_model.encoder.layers"},
    roles={**_BOTH, **_LAYERS},
    heads=_HEADS,
)

CLIP_TEXT = Architecture(
    types=("clip_text_model",),
    base="text_model",
    stacks={"text": "encoder.layers"},
    roles={**_TEXT, **_LAYERS},
    heads=_HEADS,
)

CLIP_VISION = Architecture(
    types=("clip_vision_model",),
    base="vision_model",
    stacks={"vision": "encoder.layers"},
    roles={**_VISION, **_LAYERS},
    heads=_HEADS,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [CLIP, CLIP_TEXT, CLIP_VISION]
