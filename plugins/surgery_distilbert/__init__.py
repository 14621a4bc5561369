"""DistilBERT and its task heads."""

from surgery import Architecture, hookimpl

DISTILBERT = Architecture(
    types=("distilbert",),
    base="distilbert",
    stacks={"encoder": "transformer.layer"},
    roles={
        "embedding.token": "embeddings.word_embeddings",
        "embedding.position": "embeddings.position_embeddings",
        "norm.embedding": "embeddings.LayerNorm",
        "attention.query": "*.attention.q_lin",
        "attention.key": "*.attention.k_lin",
        "attention.value": "*.attention.v_lin",
        "attention.output": "*.attention.out_lin",
        "norm.attention.post": "*.sa_layer_norm",
        "mlp.up": "*.ffn.lin1",
        "mlp.down": "*.ffn.lin2",
        "norm.mlp.post": "*.output_layer_norm",
    },
    heads={
        "head.transform": ("pre_classifier", "vocab_transform"),
        "norm.head": "vocab_layer_norm",
        "head.lm": "vocab_projector",
        "head.classifier": ("classifier", "qa_outputs"),
    },
    ties={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [DISTILBERT]
