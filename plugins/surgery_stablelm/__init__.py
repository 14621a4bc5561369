"""StableLM: the Llama shape; attention and MLP may stand side by side, and every head may have norms of its own."""

from surgery import Architecture, hookimpl

STABLELM = Architecture(
    types=("stablelm",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",  # with a parallel residual the MLP reads it too
        "attention.query": "*.self_attn.q_proj",
        "norm.query": "*.self_attn.q_layernorm.norms.*",
        "attention.key": "*.self_attn.k_proj",
        "norm.key": "*.self_attn.k_layernorm.norms.*",
        "attention.value": "*.self_attn.v_proj",
        "attention.output": "*.self_attn.o_proj",
        "norm.mlp.pre": "*.post_attention_layernorm",
        "mlp.gate": "*.mlp.gate_proj",
        "mlp.up": "*.mlp.up_proj",
        "mlp.down": "*.mlp.down_proj",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [STABLELM]
