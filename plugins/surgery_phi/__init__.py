"""Phi: attention and MLP side by side, biases throughout. Phi-3: the Llama shape with fused weights."""

from surgery import Architecture, Slice, hookimpl

PHI = Architecture(
    types=("phi",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",  # the MLP reads it too
        "attention.query": "*.self_attn.q_proj",
        "norm.query": "*.self_attn.q_layernorm",
        "attention.key": "*.self_attn.k_proj",
        "norm.key": "*.self_attn.k_layernorm",
        "attention.value": "*.self_attn.v_proj",
        "attention.output": "*.self_attn.dense",
        "mlp.up": "*.mlp.fc1",
        "mlp.down": "*.mlp.fc2",
        "norm.final": "final_layernorm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
)


def _heads(start: int | str, length: str) -> Slice:
    """Some heads of all queries, then all keys, then all values."""
    view = ("num_attention_heads + 2 * num_key_value_heads", -1)
    return Slice("*.self_attn.qkv_proj", view, start=start, length=length)


PHI3 = Architecture(
    types=("phi3",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",
        "attention.query": _heads(0, "num_attention_heads"),
        "attention.key": _heads("num_attention_heads", "num_key_value_heads"),
        "attention.value": _heads("num_attention_heads + num_key_value_heads", "num_key_value_heads"),
        "attention.output": "*.self_attn.o_proj",
        "norm.mlp.pre": "*.post_attention_layernorm",
        "mlp.gate": Slice("*.mlp.gate_up_proj", view=(2, -1), start=0),
        "mlp.up": Slice("*.mlp.gate_up_proj", view=(2, -1), start=1),
        "mlp.down": "*.mlp.down_proj",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    defaults={"num_key_value_heads": "num_attention_heads"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [PHI, PHI3]
