"""ConvBERT and Nystromformer: BERT with convolutions beside the heads of attention, or over their values."""

from surgery import Architecture, hookimpl

_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
_BODY = {
    "embedding.token": "embeddings.word_embeddings",
    "embedding.position": "embeddings.position_embeddings",
    "embedding.token_type": "embeddings.token_type_embeddings",
    "norm.embedding": "embeddings.LayerNorm",
    **{f"attention.{role}": f"*.attention.self.{role}" for role in ("query", "key", "value")},
    "attention.output": "*.attention.output.dense",
    "norm.attention.post": "*.attention.output.LayerNorm",
    "mlp.up": "*.intermediate.dense",
    "mlp.down": "*.output.dense",
    "norm.mlp.post": "*.output.LayerNorm",
}
_CONVOLUTION = tuple(  # the heads that are convolutions: what makes their kernels, and what they are applied to
    f"*.attention.self.{name}"
    for name in (
        *("key_conv_attn_layer.bias", "key_conv_attn_layer.depthwise", "key_conv_attn_layer.pointwise"),
        *("conv_kernel_layer", "conv_out_layer"),
    )
)

CONVBERT = Architecture(
    types=("convbert",),
    base="convbert",
    stacks={"encoder": "encoder.layer"},
    roles={**_BODY, "embedding.projection": "embeddings_project"},
    heads={
        "head.transform": ("generator_predictions.dense", "classifier.dense", "sequence_summary.summary"),
        "norm.head": "generator_predictions.LayerNorm",
        "head.lm": "generator_lm_head",
        "head.classifier": ("classifier.out_proj", "classifier", "qa_outputs"),
    },
    ties={"generator_lm_head.weight": "convbert.embeddings.word_embeddings.weight"},
    plain=_CONVOLUTION,
    files=_OLD_NAMES,
)

NYSTROMFORMER = Architecture(
    types=("nystromformer",),
    base="nystromformer",
    stacks={"encoder": "encoder.layer"},
    roles=_BODY,
    heads={
        "head.transform": ("cls.predictions.transform.dense", "classifier.dense", "pre_classifier"),
        "norm.head": "cls.predictions.transform.LayerNorm",
        "head.lm": ("cls.predictions.decoder", "cls.predictions"),
        "head.classifier": ("classifier.out_proj", "classifier", "qa_outputs"),
    },
    ties={
        "cls.predictions.decoder.weight": "nystromformer.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    plain=("*.attention.self.conv",),  # over the values of each head
    files=_OLD_NAMES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [CONVBERT, NYSTROMFORMER]
