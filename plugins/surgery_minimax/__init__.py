"""MiniMax: lightning attention, which keeps a state that decays, in most layers; experts in all of them."""

from surgery import Architecture, Slice, When, hookimpl

_FILES: dict[str, str | tuple[str, ...]] = {
    "mlp": "block_sparse_moe",
    "mlp.experts.gate_up_proj": ("mlp.experts.*.w1.weight", "mlp.experts.*.w3.weight"),
    "mlp.experts.down_proj": ("mlp.experts.*.w2.weight",),
}
_LINEAR = "*.self_attn.qkv_proj"
_BUFFERS = tuple(f"self_attn.{name}" for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay"))


def _third(start: int) -> Slice:
    return Slice(_LINEAR, ("num_attention_heads", 3, -1), 1, start)


def _half(start: int) -> Slice:
    return Slice("*.mlp.experts.gate_up_proj", view=(2, -1), start=start, axis=1)


MINIMAX = Architecture(
    types=("minimax",),
    base=("model", "transformer"),
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": When("*.input_layernorm", beside="*.self_attn.q_proj"),
        **{f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("query", "key", "value", "output")},
        "norm.mixer.pre": When("*.input_layernorm", beside=_LINEAR),
        "linear_attention.query": _third(0),
        "linear_attention.key": _third(1),
        "linear_attention.value": _third(2),
        "linear_attention.gate": "*.self_attn.output_gate",
        "linear_attention.output": "*.self_attn.out_proj",
        "norm.mlp.pre": "*.post_attention_layernorm",
        "moe.router": "*.mlp.gate",
        "moe.experts.gate": _half(0),
        "moe.experts.up": _half(1),
        "moe.experts.down": "*.mlp.experts.down_proj",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": ("score", "qa_outputs")},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mlp.gate",),
    plain=("*.self_attn.norm",),  # of what the state answers
    defaults={"num_attention_heads": 32},
    files=_FILES,
    ignored=_BUFFERS,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [MINIMAX]
