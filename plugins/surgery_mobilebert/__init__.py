"""MobileBERT: narrow layers between maps from and to the model's width, and several MLPs in each of them."""

from surgery import Architecture, hookimpl

_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
_NARROWING = ("*.bottleneck.input", "*.bottleneck.attention", "*.output.bottleneck")

_TIES = {
    "cls.predictions.decoder.weight": "mobilebert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}

MOBILEBERT = Architecture(
    types=("mobilebert",),
    base="mobilebert",
    stacks={"encoder": "encoder.layer"},
    roles={
        "embedding.token": "embeddings.word_embeddings",
        **{f"embedding.{role}": f"embeddings.{role}_embeddings" for role in ("position", "token_type")},
        "embedding.projection": "embeddings.embedding_transformation",
        "norm.embedding": "embeddings.LayerNorm",
        **{f"attention.{role}": f"*.attention.self.{role}" for role in ("query", "key", "value")},
        "attention.output": "*.attention.output.dense",
        "norm.attention.post": "*.attention.output.LayerNorm",
        "mlp.up": ("*.ffn.*.intermediate.dense", "*.intermediate.dense"),
        "mlp.down": ("*.ffn.*.output.dense", "*.output.dense"),
        "norm.mlp.post": ("*.ffn.*.output.LayerNorm", "*.output.LayerNorm"),
        "head.transform": "pooler.dense",
    },
    heads={
        "head.transform": "cls.predictions.transform.dense",
        "norm.head": "cls.predictions.transform.LayerNorm",
        "head.lm": ("cls.predictions.decoder", "cls.predictions.dense", "cls.predictions"),
        "head.classifier": ("classifier", "qa_outputs", "cls.seq_relationship"),
    },
    ties=_TIES,
    uncalled=("cls.predictions.decoder", "cls.predictions.dense"),
    plain=tuple(f"{path}.{name}" for path in _NARROWING for name in ("dense", "LayerNorm")),
    files=_OLD_NAMES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [MOBILEBERT]
