"""BERT, and ELECTRA, whose layers are BERT's: embeddings may be narrower, and the heads are other ones."""

from surgery import Architecture, hookimpl

_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
_BODY = {
    "embedding.token": "embeddings.word_embeddings",
    "embedding.position": "embeddings.position_embeddings",
    "embedding.token_type": "embeddings.token_type_embeddings",
    "norm.embedding": "embeddings.LayerNorm",
    "attention.query": "*.attention.self.query",
    "attention.key": "*.attention.self.key",
    "attention.value": "*.attention.self.value",
    "attention.output": "*.attention.output.dense",
    "norm.attention.post": "*.attention.output.LayerNorm",
    "cross_attention.query": "*.crossattention.self.query",
    "cross_attention.key": "*.crossattention.self.key",
    "cross_attention.value": "*.crossattention.self.value",
    "cross_attention.output": "*.crossattention.output.dense",
    "norm.cross_attention.post": "*.crossattention.output.LayerNorm",
    "mlp.up": "*.intermediate.dense",
    "mlp.down": "*.output.dense",
    "norm.mlp.post": "*.output.LayerNorm",
}

BERT = Architecture(
    types=("bert",),
    base="bert",
    stacks={"encoder": "encoder.layer"},
    roles={**_BODY, "head.transform": "pooler.dense"},
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
    files=_OLD_NAMES,
)

ELECTRA = Architecture(
    types=("electra",),
    base="electra",
    stacks={"encoder": "encoder.layer"},
    roles={**_BODY, "embedding.projection": "embeddings_project"},
    heads={
        "head.transform": (
            "generator_predictions.dense",
            "discriminator_predictions.dense",
            "classifier.dense",
            "sequence_summary.summary",
        ),
        "norm.head": "generator_predictions.LayerNorm",
        "head.lm": "generator_lm_head",
        "head.classifier": (
            "classifier.out_proj",
            "classifier",
            "qa_outputs",
            "discriminator_predictions.dense_prediction",
        ),
    },
    ties={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    files=_OLD_NAMES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [BERT, ELECTRA]
