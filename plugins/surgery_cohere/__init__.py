"""Cohere: attention and MLP side by side, fed by one norm without a bias."""

from surgery import Architecture, hookimpl

COHERE = Architecture(
    types=("cohere", "cohere2"),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",  # the MLP reads it too
        "attention.query": "*.self_attn.q_proj",
        "norm.query": "*.self_attn.q_norm",
        "attention.key": "*.self_attn.k_proj",
        "norm.key": "*.self_attn.k_norm",
        "attention.value": "*.self_attn.v_proj",
        "attention.output": "*.self_attn.o_proj",
        "mlp.gate": "*.mlp.gate_proj",
        "mlp.up": "*.mlp.up_proj",
        "mlp.down": "*.mlp.down_proj",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [COHERE]
