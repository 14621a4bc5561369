"""ZAYA: convolved queries and keys, values of which half are the word's before, and a router with layers of its own."""

from surgery import Architecture, Slice, hookimpl

_QKV = "*.self_attn.qkv_proj"
_PLAIN = (  # convolutions over queries and keys, and scales of the stream, and of what the last layer's router saw
    *(f"{_QKV}.conv_qk_depthwise", f"{_QKV}.conv_qk_grouped", "*.mlp.gate.router_states_scale"),
    *("*.post_attention_residual_scale", "*.post_mlp_residual_scale"),
    *("input_hidden_states_scale", "input_hidden_states_bias", "*.mlp.gate.router_mlp.norm"),
)
_ROUTER = ("down_proj", "router_mlp.fc1", "router_mlp.fc2", "router_mlp.out_proj")


def _half(start: int) -> Slice:
    return Slice("*.mlp.experts.gate_up_proj", view=(2, -1), start=start, axis=1)


ZAYA = Architecture(
    types=("zaya",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",
        "attention.query": f"{_QKV}.q_proj",
        "attention.key": f"{_QKV}.k_proj",
        "attention.value": (f"{_QKV}.v_proj_current", f"{_QKV}.v_proj_delayed"),
        "norm.key": "*.self_attn.qk_norm",
        "attention.output": "*.self_attn.o_proj",
        "norm.mlp.pre": "*.post_attention_layernorm",
        "moe.router": tuple(f"*.mlp.gate.{name}" for name in _ROUTER),
        "moe.experts.gate": _half(0),
        "moe.experts.up": _half(1),
        "moe.experts.down": "*.mlp.experts.down_proj",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    plain=_PLAIN,
    ignored=("mlp.gate.balancing_biases",),
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [ZAYA]
