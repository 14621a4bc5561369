"""FNet: BERT with a Fourier transform, which has no weights, in place of attention."""

from surgery import Architecture, hookimpl

_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
FNET = Architecture(
    types=("fnet",),
    base="fnet",
    stacks={"encoder": "encoder.layer"},
    roles={
        "embedding.token": "embeddings.word_embeddings",
        "embedding.position": "embeddings.position_embeddings",
        "embedding.token_type": "embeddings.token_type_embeddings",
        "norm.embedding": "embeddings.LayerNorm",
        "embedding.projection": "embeddings.projection",
        "norm.mixer.post": "*.fourier.output.LayerNorm",
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
        "cls.predictions.decoder.weight": "fnet.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    files=_OLD_NAMES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [FNET]
