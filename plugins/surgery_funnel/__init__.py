"""Funnel Transformer: blocks that halve the length, attention by distance, and a decoder that restores it."""

from surgery import Architecture, hookimpl

FUNNEL = Architecture(
    types=("funnel",),
    base="funnel",
    stacks={"encoder": "encoder.blocks.*", "decoder": "decoder.layers"},
    roles={
        "embedding.token": "embeddings.word_embeddings",
        "norm.embedding": "embeddings.layer_norm",
        "attention.query": "*.attention.q_head",
        "attention.key": ("*.attention.k_head", "*.attention.r_kernel"),  # of tokens, and of distances
        "attention.value": "*.attention.v_head",
        "attention.output": "*.attention.post_proj",
        "norm.attention.post": "*.attention.layer_norm",
        "mlp.up": "*.ffn.linear_1",
        "mlp.down": "*.ffn.linear_2",
        "norm.mlp.post": "*.ffn.layer_norm",
    },
    heads={
        "head.lm": "lm_head",
        "head.transform": ("classifier.linear_hidden", "discriminator_predictions.dense"),
        "head.classifier": (
            *("classifier.linear_out", "classifier", "qa_outputs"),
            "discriminator_predictions.dense_prediction",
        ),
    },
    ties={"lm_head.weight": "funnel.embeddings.word_embeddings.weight"},
    # biases of queries, and vectors of segments
    plain=tuple(f"*.attention.{name}" for name in ("r_r_bias", "r_s_bias", "r_w_bias", "seg_embed")),
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [FUNNEL]
