"""ProphetNet: BART's shape, with a decoder that runs one stream for each of the next words that it predicts."""

from surgery import Architecture, hookimpl

_TABLES = ("", "encoder.", "decoder.")
_TIES = {f"{part}word_embeddings.weight": "word_embeddings.weight" for part in _TABLES if part} | {
    "lm_head.weight": "prophetnet.word_embeddings.weight",
    **{f"prophetnet.{part}word_embeddings.weight": "prophetnet.word_embeddings.weight" for part in _TABLES if part},
}
PROPHETNET = Architecture(
    types=("prophetnet",),
    base="prophetnet",
    stacks={"encoder": "encoder.layers", "decoder": "decoder.layers"},
    roles={
        "embedding.token": tuple(f"{part}word_embeddings" for part in _TABLES),
        "embedding.position": ("encoder.position_embeddings", "decoder.position_embeddings"),
        "embedding.token_type": "decoder.ngram_embeddings",  # of streams
        "norm.embedding": ("encoder.embeddings_layer_norm", "decoder.embeddings_layer_norm"),
        **{f"attention.{role}": f"*.self_attn.{role}_proj" for role in ("query", "key", "value")},
        "attention.output": "*.self_attn.out_proj",
        "norm.attention.post": "*.self_attn_layer_norm",
        **{f"cross_attention.{role}": f"*.cross_attn.{role}_proj" for role in ("query", "key", "value")},
        "cross_attention.output": "*.cross_attn.out_proj",
        "norm.cross_attention.post": "*.cross_attn_layer_norm",
        "mlp.up": "*.feed_forward.intermediate",
        "mlp.down": "*.feed_forward.output",
        "norm.mlp.post": "*.feed_forward_layer_norm",
    },
    heads={"head.lm": "lm_head"},
    ties=_TIES,
    plain=("*.self_attn.relative_pos_embeddings",),  # scores of distances, made of the state that asks
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [PROPHETNET]
