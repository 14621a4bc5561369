"""SqueezeBERT: BERT whose projections are convolutions of width one over groups of features."""

from surgery import Architecture, hookimpl

_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
SQUEEZEBERT = Architecture(
    types=("squeezebert",),
    base="transformer",
    stacks={"encoder": "encoder.layers"},
    roles={
        "embedding.token": "embeddings.word_embeddings",
        "embedding.position": "embeddings.position_embeddings",
        "embedding.token_type": "embeddings.token_type_embeddings",
        "norm.embedding": "embeddings.LayerNorm",
        **{f"attention.{role}": f"*.attention.{role}" for role in ("query", "key", "value")},
        "attention.output": "*.post_attention.conv1d",
        "norm.attention.post": "*.post_attention.layernorm",
        "mlp.up": "*.intermediate.conv1d",
        "mlp.down": "*.output.conv1d",
        "norm.mlp.post": "*.output.layernorm",
        "head.transform": "pooler.dense",
    },
    heads={
        "head.transform": "cls.predictions.transform.dense",
        "norm.head": "cls.predictions.transform.LayerNorm",
        "head.lm": ("cls.predictions.decoder", "cls.predictions"),
        "head.classifier": ("classifier", "qa_outputs"),
    },
    ties={
        "cls.predictions.decoder.weight": "transformer.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    files=_OLD_NAMES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [SQUEEZEBERT]
