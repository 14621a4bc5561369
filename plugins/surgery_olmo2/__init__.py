"""OLMo 2: norms only after their block, and of queries and keys."""

from surgery import Architecture, hookimpl

OLMO2 = Architecture(
    types=("olmo2",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "attention.query": "*.self_attn.q_proj",
        "norm.query": "*.self_attn.q_norm",
        "attention.key": "*.self_attn.k_proj",
        "norm.key": "*.self_attn.k_norm",
        "attention.value": "*.self_attn.v_proj",
        "attention.output": "*.self_attn.o_proj",
        "norm.attention.post": "*.post_attention_layernorm",
        "mlp.gate": "*.mlp.gate_proj",
        "mlp.up": "*.mlp.up_proj",
        "mlp.down": "*.mlp.down_proj",
        "norm.mlp.post": "*.post_feedforward_layernorm",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [OLMO2]
