"""DeBERTa: attention to relative positions, whose keys and queries come from a table that no module looks up."""

from surgery import Architecture, Slice, When, hookimpl

_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
_BODY: dict[str, str | tuple[str, ...]] = {
    "embedding.token": "embeddings.word_embeddings",
    "embedding.position": "embeddings.position_embeddings",
    "embedding.token_type": "embeddings.token_type_embeddings",
    "embedding.projection": "embeddings.embed_proj",
    "embedding.relative": "encoder.rel_embeddings",
    "attention.output": "*.attention.output.dense",
    "norm.attention.post": "*.attention.output.LayerNorm",
    "mlp.up": "*.intermediate.dense",
    "mlp.down": "*.output.dense",
    "norm.mlp.post": "*.output.LayerNorm",
}
_HEADS: dict[str, str | tuple[str, ...]] = {
    "head.transform": ("pooler.dense", "cls.predictions.transform.dense", "lm_predictions.lm_head.dense"),
    "norm.head": ("cls.predictions.transform.LayerNorm", "lm_predictions.lm_head.LayerNorm"),
    "head.lm": ("cls.predictions.decoder", "cls.predictions", "lm_predictions.lm_head"),
    "head.classifier": ("classifier", "qa_outputs"),
}
_TIES = {
    "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# A head that is not `legacy` multiplies by the table of tokens itself, past the module that holds it.
_UNCALLED = ("encoder.rel_embeddings", When("embeddings.word_embeddings", {"legacy": False}))


def _per_head(start: int) -> Slice:
    return Slice("*.attention.self.in_proj", view=("num_attention_heads", 3, -1), dim=1, start=start)


DEBERTA = Architecture(
    types=("deberta",),
    base="deberta",
    stacks={"encoder": "encoder.layer"},
    roles={
        **_BODY,
        "norm.embedding": "embeddings.LayerNorm",
        # Query and value have biases of their own beside the fused weight; queries and keys of positions are apart.
        "attention.query": (_per_head(0), "*.attention.self.q_bias", "*.attention.self.pos_q_proj"),
        "attention.key": (_per_head(1), "*.attention.self.pos_proj"),
        "attention.value": (_per_head(2), "*.attention.self.v_bias"),
    },
    heads=_HEADS,
    ties=_TIES,
    uncalled=_UNCALLED,
    defaults={"legacy": True},
    files=_OLD_NAMES,
)

DEBERTA_V2 = Architecture(
    types=("deberta-v2",),
    base="deberta",
    stacks={"encoder": "encoder.layer"},
    roles={
        **_BODY,
        "norm.embedding": ("embeddings.LayerNorm", "encoder.LayerNorm"),
        # With `share_att_key` one projection serves words and positions; else those of positions are apart.
        "attention.query": ("*.attention.self.query_proj", "*.attention.self.pos_query_proj"),
        "attention.key": ("*.attention.self.key_proj", "*.attention.self.pos_key_proj"),
        "attention.value": "*.attention.self.value_proj",
    },
    heads=_HEADS,
    ties=_TIES,
    uncalled=_UNCALLED,
    defaults={"legacy": True},
    files=_OLD_NAMES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [DEBERTA, DEBERTA_V2]
