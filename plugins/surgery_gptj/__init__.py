"""GPT-J: attention and MLP side by side, fed by one norm; a head of its own with a bias."""

from surgery import Architecture, hookimpl

GPTJ = Architecture(
    types=("gptj",),
    base="transformer",
    stacks={"decoder": "h"},
    roles={
        "embedding.token": "wte",
        "norm.attention.pre": "*.ln_1",  # the MLP reads it too
        "attention.query": "*.attn.q_proj",
        "attention.key": "*.attn.k_proj",
        "attention.value": "*.attn.v_proj",
        "attention.output": "*.attn.out_proj",
        "mlp.up": "*.mlp.fc_in",
        "mlp.down": "*.mlp.fc_out",
        "norm.final": "ln_f",
    },
    heads={"head.lm": "lm_head", "head.classifier": ("score", "qa_outputs")},
    ties={"lm_head.weight": "transformer.wte.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [GPTJ]
