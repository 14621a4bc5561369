"""StarCoder2: the Llama shape with an MLP without a gate, and biases."""

from surgery import Architecture, hookimpl

STARCODER2 = Architecture(
    types=("starcoder2",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",
        "attention.query": "*.self_attn.q_proj",
        "attention.key": "*.self_attn.k_proj",
        "attention.value": "*.self_attn.v_proj",
        "attention.output": "*.self_attn.o_proj",
        "norm.mlp.pre": "*.post_attention_layernorm",
        "mlp.up": "*.mlp.c_fc",
        "mlp.down": "*.mlp.c_proj",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [STARCODER2]
