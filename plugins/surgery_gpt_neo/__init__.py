"""GPT-Neo: the shape of GPT-2 with separate query, key and value, in plain linear modules."""

from surgery import Architecture, hookimpl

GPT_NEO = Architecture(
    types=("gpt_neo",),
    base="transformer",
    stacks={"decoder": "h"},
    roles={
        "embedding.token": "wte",
        "embedding.position": "wpe",
        "norm.attention.pre": "*.ln_1",
        "attention.query": "*.attn.attention.q_proj",
        "attention.key": "*.attn.attention.k_proj",
        "attention.value": "*.attn.attention.v_proj",
        "attention.output": "*.attn.attention.out_proj",
        "norm.mlp.pre": "*.ln_2",
        "mlp.up": "*.mlp.c_fc",
        "mlp.down": "*.mlp.c_proj",
        "norm.final": "ln_f",
    },
    heads={"head.lm": "lm_head", "head.classifier": ("score", "classifier", "qa_outputs")},
    ties={"lm_head.weight": "transformer.wte.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [GPT_NEO]
