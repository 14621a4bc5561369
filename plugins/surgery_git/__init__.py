"""GIT: BERT's layers as a decoder of text, after the vectors of images from CLIP's layers."""

from surgery import Architecture, hookimpl

_VISION = "image_encoder.vision_model"
_PATCHES = f"{_VISION}.embeddings"
_POSITIONS = (  # the last of an image among several
    *("embeddings.position_embeddings", f"{_PATCHES}.position_embedding", "img_temporal_embedding"),
)
_NORMS = ("embeddings.LayerNorm", f"{_VISION}.pre_layrnorm", "visual_projection.visual_projection.1")

GIT = Architecture(
    types=("git",),
    base="git",
    stacks={"decoder": "encoder.layer", "vision": f"{_VISION}.encoder.layers"},
    roles={
        "embedding.token": "embeddings.word_embeddings",
        "embedding.patch": f"{_PATCHES}.patch_embedding",
        "embedding.class": f"{_PATCHES}.class_embedding",
        "embedding.position": _POSITIONS,
        "embedding.projection": "visual_projection.visual_projection.0",
        "norm.embedding": _NORMS,
        "norm.attention.pre": "*.layer_norm1",
        **{
            f"attention.{role}": (f"*.attention.self.{role}", f"*.self_attn.{role[0]}_proj")
            for role in ("query", "key", "value")
        },
        "attention.output": ("*.attention.output.dense", "*.self_attn.out_proj"),
        "norm.attention.post": "*.attention.output.LayerNorm",
        "norm.mlp.pre": "*.layer_norm2",
        "mlp.up": ("*.intermediate.dense", "*.mlp.fc1"),
        "mlp.down": ("*.output.dense", "*.mlp.fc2"),
        "norm.mlp.post": "*.output.LayerNorm",
        "norm.final": f"{_VISION}.post_layernorm",
    },
    heads={"head.lm": "output"},
    ties={"output.weight": "git.embeddings.word_embeddings.weight"},
)  # fmt: skip


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [GIT]
