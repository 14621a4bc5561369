"""BLOOM: query, key and value head by head in one fused weight; a norm of the embeddings."""

from surgery import Architecture, Slice, hookimpl


def _of_each_head(start: int) -> Slice:
    return Slice("*.self_attention.query_key_value", view=("n_head", 3, -1), dim=1, start=start)


BLOOM = Architecture(
    types=("bloom",),
    base="transformer",
    stacks={"decoder": "h"},
    roles={
        "embedding.token": "word_embeddings",
        "norm.embedding": "word_embeddings_layernorm",
        "norm.attention.pre": "*.input_layernorm",
        "attention.query": _of_each_head(0),
        "attention.key": _of_each_head(1),
        "attention.value": _of_each_head(2),
        "attention.output": "*.self_attention.dense",
        "norm.mlp.pre": "*.post_attention_layernorm",
        "mlp.up": "*.mlp.dense_h_to_4h",
        "mlp.down": "*.mlp.dense_4h_to_h",
        "norm.final": "ln_f",
    },
    heads={"head.lm": "lm_head", "head.classifier": ("score", "classifier", "qa_outputs")},
    ties={"lm_head.weight": "transformer.word_embeddings.weight"},
    defaults={"n_head": "num_attention_heads"},  # what config.json calls it differs
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [BLOOM]
