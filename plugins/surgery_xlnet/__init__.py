"""XLNet: attention by distance, all of whose projections are raw parameters of shape (width, heads, features)."""

from surgery import Architecture, hookimpl

XLNET = Architecture(
    types=("xlnet",),
    base="transformer",
    stacks={"encoder": "layer"},
    roles={
        "embedding.token": "word_embedding",
        "attention.query": "*.rel_attn.q",
        "attention.key": ("*.rel_attn.k", "*.rel_attn.r"),  # of tokens, and of distances
        "attention.value": "*.rel_attn.v",
        "attention.output": "*.rel_attn.o",
        "norm.attention.post": "*.rel_attn.layer_norm",
        "mlp.up": "*.ff.layer_1",
        "mlp.down": "*.ff.layer_2",
        "norm.mlp.post": "*.ff.layer_norm",
    },
    heads={
        "head.lm": "lm_loss",
        "head.transform": ("sequence_summary.summary", "end_logits.dense_0", "answer_class.dense_0"),
        "norm.head": "end_logits.LayerNorm",
        "head.classifier": (
            *("logits_proj", "classifier", "qa_outputs"),
            *("start_logits.dense", "end_logits.dense_1", "answer_class.dense_1"),
        ),
    },
    ties={"lm_loss.weight": "transformer.word_embedding.weight"},
    plain=(  # what stands for a hidden token, biases of queries, and vectors of segments
        "mask_emb",
        *(f"*.rel_attn.{name}" for name in ("r_r_bias", "r_s_bias", "r_w_bias", "seg_embed")),
    ),
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [XLNET]
