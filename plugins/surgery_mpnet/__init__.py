"""MPNet: one table of relative positions for all layers, beside absolute ones."""

from surgery import Architecture, hookimpl

_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
_TIES = {
    "lm_head.decoder.weight": "mpnet.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}

MPNET = Architecture(
    types=("mpnet",),
    base="mpnet",
    stacks={"encoder": "encoder.layer"},
    roles={
        "embedding.token": "embeddings.word_embeddings",
        "embedding.position": "embeddings.position_embeddings",
        "embedding.relative": "encoder.relative_attention_bias",
        "norm.embedding": "embeddings.LayerNorm",
        "attention.query": "*.attention.attn.q",
        "attention.key": "*.attention.attn.k",
        "attention.value": "*.attention.attn.v",
        "attention.output": "*.attention.attn.o",
        "norm.attention.post": "*.attention.LayerNorm",
        "mlp.up": "*.intermediate.dense",
        "mlp.down": "*.output.dense",
        "norm.mlp.post": "*.output.LayerNorm",
        "head.transform": "pooler.dense",
    },
    heads={
        "head.transform": ("classifier.dense", "lm_head.dense"),
        "norm.head": "lm_head.layer_norm",
        "head.lm": ("lm_head.decoder", "lm_head"),
        "head.classifier": ("classifier.out_proj", "classifier", "qa_outputs"),
    },
    ties=_TIES,
    files=_OLD_NAMES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [MPNET]
