"""BERT and its task heads."""

from surgery import Architecture, hookimpl

BERT = Architecture(
    types=("bert",),
    base="bert",
    stacks={"encoder": "encoder.layer"},
    roles={
        "embedding.token": "embeddings.word_embeddings",
        "embedding.position": "embeddings.position_embeddings",
        "embedding.token_type": "embeddings.token_type_embeddings",
        "norm.embedding": "embeddings.LayerNorm",
        "attention.query": "*.attention.self.query",
        "attention.key": "*.attention.self.key",
        "attention.value": "*.attention.self.value",
        "attention.output": "*.attention.output.dense",
        "norm.attention.post": "*.attention.output.LayerNorm",
        "mlp.up": "*.intermediate.dense",
        "mlp.down": "*.output.dense",
        "norm.mlp.post": "*.output.LayerNorm",
        "head.transform": "pooler.dense",
    },
    heads={
        "head.transform": "cls.predictions.transform.dense",
        "norm.head": "cls.predictions.transform.LayerNorm",
        "head.lm": ("cls.predictions.decoder", "cls.predictions"),
        "head.classifier": ("classifier", "qa_outputs", "cls.seq_relationship"),
    },
    ties={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [BERT]
