"""LiLT: RoBERTa's layers, and beside each of them a narrower one for the layout; both attend by the sum of scores."""

from surgery import Architecture, hookimpl

_BOXES = tuple(f"layout_embeddings.{name}_position_embeddings" for name in ("x", "y", "h", "w", "box"))

LILT = Architecture(
    types=("lilt",),
    base="lilt",
    stacks={"encoder": "encoder.layer"},
    roles={
        "embedding.token": "embeddings.word_embeddings",
        "embedding.position": ("embeddings.position_embeddings", *_BOXES),
        "embedding.token_type": "embeddings.token_type_embeddings",
        "embedding.projection": "layout_embeddings.box_linear_embeddings",
        "norm.embedding": ("embeddings.LayerNorm", "layout_embeddings.LayerNorm"),
        **{
            f"attention.{role}": (f"*.attention.self.{role}", f"*.attention.self.layout_{role}")
            for role in ("query", "key", "value")
        },
        "attention.output": ("*.attention.output.dense", "*.attention.layout_output.dense"),
        "norm.attention.post": ("*.attention.output.LayerNorm", "*.attention.layout_output.LayerNorm"),
        "mlp.up": ("*.intermediate.dense", "*.layout_intermediate.dense"),
        "mlp.down": ("*.output.dense", "*.layout_output.dense"),
        "norm.mlp.post": ("*.output.LayerNorm", "*.layout_output.LayerNorm"),
        "head.transform": "pooler.dense",
    },
    heads={
        "head.transform": "classifier.dense",
        "head.classifier": ("classifier.out_proj", "classifier", "qa_outputs"),
    },
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [LILT]
