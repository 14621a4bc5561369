"""RWKV: a state in place of the past, read by a gate (receptance) and no query; its MLP has such a gate too."""

from surgery import Architecture, hookimpl

_PLAIN = (  # decays, mixing with the token before, and the gate of the MLP's result
    "*.attention.time_decay",
    "*.attention.time_first",
    *(f"*.attention.time_mix_{name}" for name in ("key", "value", "receptance")),
    *(f"*.feed_forward.time_mix_{name}" for name in ("key", "receptance")),
    "*.feed_forward.receptance",
)

RWKV = Architecture(
    types=("rwkv",),
    base="rwkv",
    stacks={"decoder": "blocks"},
    roles={
        "embedding.token": "embeddings",
        "norm.embedding": "*.pre_ln",  # the first layer has it
        "norm.mixer.pre": "*.ln1",
        "linear_attention.key": "*.attention.key",
        "linear_attention.value": "*.attention.value",
        "linear_attention.gate": "*.attention.receptance",
        "linear_attention.output": "*.attention.output",
        "norm.mlp.pre": "*.ln2",
        "mlp.up": "*.feed_forward.key",
        "mlp.down": "*.feed_forward.value",
        "norm.final": "ln_out",
    },
    heads={"head.lm": "head"},
    ties={"head.weight": "rwkv.embeddings.weight"},
    plain=_PLAIN,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [RWKV]
