"""NeoMME: one encoder of words and patches, with gated attention and norms that have no weights."""

from surgery import Architecture, hookimpl

_PLAIN = (  # gates of the heads' results, what of a token's own value is taken out of them, and the first states' share
    *("*.self_attn.output_projection.gate_proj", "*.self_attn.exclusive_self_attention.alpha", "*.lambdas"),
)
_TIES = {
    "lm_head.weight": "model.embed_tokens.word_embeddings.weight",
    "unembedding_projection.weight": "model.embed_tokens.embedding_projection.weight",
}

NEOMME = Architecture(
    types=("neomme",),
    base="model",
    stacks={"encoder": "layers"},
    roles={
        "embedding.token": ("embed_tokens.word_embeddings", "value_embeddings"),  # the second are added to values
        "embedding.projection": "embed_tokens.embedding_projection",
        "norm.embedding": "patch_embeddings.norm",
        "embedding.patch": ("patch_embeddings.up_proj", "patch_embeddings.down_proj"),
        **{f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("query", "key", "value")},
        "attention.output": "*.self_attn.output_projection.o_proj",
        "mlp.up": "*.mlp.up_proj",
        "mlp.down": "*.mlp.down_proj",
    },
    heads={
        "head.transform": "unembedding_projection",
        "head.lm": "lm_head",
        "head.projection": "multi_vector_head.proj",
    },
    ties=_TIES,
    uncalled=("unembedding_projection",),
    plain=_PLAIN,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [NEOMME]
