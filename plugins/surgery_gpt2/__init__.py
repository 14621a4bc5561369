"""GPT-2: Conv1D hosts, and a fused query-key-value weight that is cut into three."""

from surgery import Architecture, Slice, hookimpl


def _third(start: int) -> Slice:
    return Slice("*.attn.c_attn", view=(3, -1), start=start, axis=1)


GPT2 = Architecture(
    types=("gpt2",),
    base="transformer",
    stacks={"decoder": "h"},
    roles={
        "embedding.token": "wte",
        "embedding.position": "wpe",
        "norm.attention.pre": "*.ln_1",
        "attention.query": _third(0),
        "attention.key": _third(1),
        "attention.value": _third(2),
        "attention.output": "*.attn.c_proj",
        "norm.mlp.pre": "*.ln_2",
        "mlp.up": "*.mlp.c_fc",
        "mlp.down": "*.mlp.c_proj",
        "norm.final": "ln_f",
    },
    heads={"head.lm": "lm_head", "head.classifier": ("score", "classifier", "qa_outputs")},
    conv1d=True,
    ties={"lm_head.weight": "transformer.wte.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [GPT2]
