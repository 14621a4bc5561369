"""ModernBERT: fused projections in thirds and halves; the half that its code calls `input` passes the activation."""

from surgery import Architecture, Slice, hookimpl


def _third(start: int) -> Slice:
    return Slice("*.attn.Wqkv", view=(3, -1), start=start)


def _half(start: int) -> Slice:
    return Slice("*.mlp.Wi", view=(2, -1), start=start)


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


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [MODERNBERT]
