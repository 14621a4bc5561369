"""ModernBERT, its decoder, and one that sees: the half of `Wi` that the code calls `input` passes the activation."""

from surgery import Architecture, Slice, hookimpl


def _third(start: int) -> Slice:
    return Slice("*.attn.Wqkv", view=(3, -1), start=start)


def _half(start: int) -> Slice:
    return Slice("*.mlp.Wi", view=(2, -1), start=start)


_VISION_HEADS: dict[str, str | tuple[str, ...]] = {
    "head.transform": ("projection_head.dense", "head.dense"),
    "norm.head": ("projection_head.norm", "head.norm"),
    "head.lm": "lm_head",
    "head.classifier": "classifier",
}
_POOLING = tuple(  # one vector of an image, which the text does not see
    f"vision_model.head.{name}"
    for name in ("probe", "attention", "attention.out_proj", "layernorm", "mlp.fc1", "mlp.fc2")
)

MODERNBERT = Architecture(
    types=("modernbert",),
    base="model",
    stacks={"encoder": "layers"},
    roles={
        "embedding.token": "embeddings.tok_embeddings",
        "norm.embedding": "embeddings.norm",
        "norm.attention.pre": "*.attn_norm",  # the first layer has none
        "attention.query": _third(0),
        "attention.key": _third(1),
        "attention.value": _third(2),
        "attention.output": "*.attn.Wo",
        "norm.mlp.pre": "*.mlp_norm",
        "mlp.gate": _half(0),
        "mlp.up": _half(1),
        "mlp.down": "*.mlp.Wo",
        "norm.final": "final_norm",
    },
    heads={
        "head.transform": "head.dense",
        "norm.head": "head.norm",
        "head.lm": "decoder",
        "head.classifier": "classifier",
    },
    ties={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)


MODERNBERT_DECODER = Architecture(
    types=("modernbert-decoder",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embeddings.tok_embeddings",
        "norm.embedding": "embeddings.norm",
        "norm.attention.pre": "*.attn_norm",  # the first layer has none
        **{f"attention.{role}": f"*.attn.{role[0]}_proj" for role in ("query", "key", "value")},
        "attention.output": "*.attn.Wo",
        "norm.mlp.pre": "*.mlp_norm",
        "mlp.gate": _half(0),
        "mlp.up": _half(1),
        "mlp.down": "*.mlp.Wo",
        "norm.final": "final_norm",
    },
    heads={
        "head.transform": ("lm_head.dense", "head.dense"),
        "norm.head": ("lm_head.norm", "head.norm"),
        "head.lm": "decoder",
        "head.classifier": "classifier",
    },
    ties={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)

MODERNVBERT = Architecture(
    types=("modernvbert",),
    base="model",
    stacks={"vision": "vision_model.encoder.layers", "encoder": "text_model.layers"},
    roles={
        "embedding.patch": "vision_model.embeddings.patch_embedding",
        "embedding.position": "vision_model.embeddings.position_embedding",
        "embedding.token": "text_model.embeddings.tok_embeddings",
        "embedding.projection": "connector.modality_projection",
        "norm.embedding": "text_model.embeddings.norm",
        "norm.attention.pre": ("*.attn_norm", "*.layer_norm1"),
        "attention.query": (_third(0), "*.self_attn.q_proj"),
        "attention.key": (_third(1), "*.self_attn.k_proj"),
        "attention.value": (_third(2), "*.self_attn.v_proj"),
        "attention.output": ("*.attn.Wo", "*.self_attn.out_proj"),
        "norm.mlp.pre": ("*.mlp_norm", "*.layer_norm2"),
        "mlp.gate": _half(0),
        "mlp.up": (_half(1), "*.mlp.fc1"),
        "mlp.down": ("*.mlp.Wo", "*.mlp.fc2"),
        "norm.final": ("vision_model.post_layernorm", "text_model.final_norm"),
    },
    heads=_VISION_HEADS,
    ties={"lm_head.weight": "model.text_model.embeddings.tok_embeddings.weight"},
    plain=_POOLING,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [MODERNBERT, MODERNBERT_DECODER, MODERNVBERT]
