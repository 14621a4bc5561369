"""MPT: query, key and value as the thirds of one fused weight; no biases."""

from surgery import Architecture, Slice, hookimpl


def _third(start: int) -> Slice:
    return Slice("*.attn.Wqkv", view=(3, -1), start=start)


MPT = Architecture(
    types=("mpt",),
    base="transformer",
    stacks={"decoder": "blocks"},
    roles={
        "embedding.token": "wte",
        "norm.attention.pre": "*.norm_1",
        "attention.query": _third(0),
        "attention.key": _third(1),
        "attention.value": _third(2),
        "attention.output": "*.attn.out_proj",
        "norm.mlp.pre": "*.norm_2",
        "mlp.up": "*.ffn.up_proj",
        "mlp.down": "*.ffn.down_proj",
        "norm.final": "norm_f",
    },
    heads={"head.lm": "lm_head", "head.classifier": ("score", "classifier", "qa_outputs")},
    ties={"lm_head.weight": "transformer.wte.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [MPT]
