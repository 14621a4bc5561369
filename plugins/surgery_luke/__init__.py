"""LUKE: BERT's layers over words and entities, with a query for each pair of the two kinds."""

from surgery import Architecture, hookimpl

_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
_TABLES = ("embeddings", "entity_embeddings")

_TIES = {
    "entity_predictions.decoder.weight": "luke.entity_embeddings.entity_embeddings.weight",
    "lm_head.bias": "lm_head.decoder.bias",
}

LUKE = Architecture(
    types=("luke",),
    base="luke",
    stacks={"encoder": "encoder.layer"},
    roles={
        "embedding.token": ("embeddings.word_embeddings", "entity_embeddings.entity_embeddings"),
        "embedding.projection": "entity_embeddings.entity_embedding_dense",
        "embedding.position": tuple(f"{table}.position_embeddings" for table in _TABLES),
        "embedding.token_type": tuple(f"{table}.token_type_embeddings" for table in _TABLES),
        "norm.embedding": tuple(f"{table}.LayerNorm" for table in _TABLES),
        "attention.query": tuple(f"*.attention.self.{kind}query" for kind in ("", "w2e_", "e2w_", "e2e_")),
        **{f"attention.{role}": f"*.attention.self.{role}" for role in ("key", "value")},
        "attention.output": "*.attention.output.dense",
        "norm.attention.post": "*.attention.output.LayerNorm",
        "mlp.up": "*.intermediate.dense",
        "mlp.down": "*.output.dense",
        "norm.mlp.post": "*.output.LayerNorm",
        "head.transform": "pooler.dense",
    },
    heads={
        "head.transform": ("lm_head.dense", "entity_predictions.transform.dense"),
        "norm.head": ("lm_head.layer_norm", "entity_predictions.transform.LayerNorm"),
        "head.lm": ("lm_head.decoder", "lm_head", "entity_predictions.decoder", "entity_predictions"),
        "head.classifier": ("classifier", "qa_outputs"),
    },
    ties=_TIES,
    files=_OLD_NAMES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [LUKE]
