"""LFM2 and LFM3: short convolutions, gated by B before and by C after, in most layers, and attention in the others."""

from surgery import Architecture, Slice, When, hookimpl

_FILES = {
    "feed_forward.experts.gate_up_proj": ("feed_forward.experts.*.w1.weight", "feed_forward.experts.*.w3.weight"),
    "feed_forward.experts.down_proj": ("feed_forward.experts.*.w2.weight",),
}


def _third(start: int) -> Slice:
    return Slice("*.conv.in_proj", view=(3, -1), start=start)


def _half(start: int) -> Slice:
    return Slice("*.feed_forward.experts.gate_up_proj", view=(2, -1), start=start, axis=1)


_LAYER: dict[str, str | Slice | When] = {
    "norm.attention.pre": When("*.operator_norm", beside="*.self_attn"),
    **{f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("query", "key", "value")},
    "norm.mixer.pre": When("*.operator_norm", beside="*.conv"),
    "ssm.B": _third(0),  # the state is what the convolution still sees
    "ssm.C": _third(1),
    "ssm.x": _third(2),
    "ssm.conv": "*.conv.conv",
    "ssm.output": "*.conv.out_proj",
    "norm.mlp.pre": "*.ffn_norm",
    "mlp.gate": "*.feed_forward.w1",
    "mlp.up": "*.feed_forward.w3",
    "mlp.down": "*.feed_forward.w2",
    "norm.final": "embedding_norm",
}

LFM_2 = Architecture(
    types=("lfm2", "lfm2_moe"),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        **_LAYER,
        "norm.query": "*.self_attn.q_layernorm",
        "norm.key": "*.self_attn.k_layernorm",
        "attention.output": "*.self_attn.out_proj",
        "moe.router": "*.feed_forward.gate",
        "moe.experts.gate": _half(0),
        "moe.experts.up": _half(1),
        "moe.experts.down": "*.feed_forward.experts.down_proj",
    },
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.feed_forward.gate",),
    files=_FILES,
    ignored=("feed_forward.expert_bias",),  # a buffer: the router's balance, which is not trained
)

LFM_3 = Architecture(
    types=("lfm3",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        **_LAYER,
        "norm.query": "*.self_attn.q_norm",
        "norm.key": "*.self_attn.k_norm",
        "attention.output": "*.self_attn.o_proj",
        "norm.attention.post": When("*.post_operator_norm", beside="*.self_attn"),
        "norm.mixer.post": When("*.post_operator_norm", beside="*.conv"),
        "norm.mlp.post": "*.post_ffn_norm",
    },
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    plain=("*.self_attn.g_proj",),  # one gate for each head
    files={"self_attn.g_proj": "self_attn.gate_proj"},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [LFM_2, LFM_3]
