"""ALBERT: few physical layers serve all logical ones, so a site of a layer acts in every pass through that layer."""

from surgery import Architecture, hookimpl

_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
_TIES = {
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
}

ALBERT = Architecture(
    types=("albert",),
    base="albert",
    stacks={"encoder": "encoder.albert_layer_groups.*.albert_layers"},
    roles={
        "embedding.token": "embeddings.word_embeddings",
        "embedding.position": "embeddings.position_embeddings",
        "embedding.token_type": "embeddings.token_type_embeddings",
        "norm.embedding": "embeddings.LayerNorm",
        "embedding.projection": "encoder.embedding_hidden_mapping_in",
        "attention.query": "*.attention.query",
        "attention.key": "*.attention.key",
        "attention.value": "*.attention.value",
        "attention.output": "*.attention.dense",
        "norm.attention.post": "*.attention.LayerNorm",
        "mlp.up": "*.ffn",
        "mlp.down": "*.ffn_output",
        "norm.mlp.post": "*.full_layer_layer_norm",
        "head.transform": "pooler",
    },
    heads={
        "head.transform": "predictions.dense",
        "norm.head": "predictions.LayerNorm",
        "head.lm": ("predictions.decoder", "predictions"),
        "head.classifier": ("classifier", "qa_outputs", "sop_classifier.classifier"),
    },
    ties=_TIES,
    files=_OLD_NAMES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [ALBERT]
