"""RoBERTa and its kin, which keep its name: XLM-RoBERTa, CamemBERT, and X-MOD with a bottleneck for each language."""

from surgery import Architecture, When, hookimpl

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

ROBERTA = Architecture(
    types=("roberta", "xlm-roberta", "camembert"),
    base="roberta",
    stacks={"encoder": "encoder.layer"},
    roles={**_BODY, "head.transform": "pooler.dense"},
    heads={
        "head.transform": ("classifier.dense", "lm_head.dense"),
        "norm.head": "lm_head.layer_norm",
        "head.lm": ("lm_head.decoder", "lm_head"),
        "head.classifier": ("classifier.out_proj", "classifier", "qa_outputs"),
    },
    ties={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    files=_OLD_NAMES,
)

_PRE, _POST = {"pre_norm": True}, {"pre_norm": False}
_BLOCKS = {"attention": "*.attention.output", "cross_attention": "*.crossattention.output", "mlp": "*.output"}

XMOD = Architecture(
    types=("xmod",),
    base="roberta",
    stacks={"encoder": "encoder.layer"},
    roles={
        **{role: path for role, path in _BODY.items() if not role.endswith(".post")},
        **{f"norm.{block}.pre": When(f"{path}.LayerNorm", _PRE) for block, path in _BLOCKS.items()},
        **{f"norm.{block}.post": When(f"{path}.LayerNorm", _POST) for block, path in _BLOCKS.items()},
        "norm.final": "encoder.LayerNorm",
        "head.transform": "pooler.dense",
    },
    heads=ROBERTA.heads,
    ties=ROBERTA.ties,
    plain=(  # a bottleneck for each language, of which one is used for a text
        *("*.output.adapter_modules.*.dense1", "*.output.adapter_modules.*.dense2", "*.output.adapter_layer_norm"),
    ),
    defaults={"pre_norm": False},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [ROBERTA, XMOD]
