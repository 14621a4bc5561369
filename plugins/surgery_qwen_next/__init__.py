"""Qwen3-Next and Qwen3.5: gated attention in some layers and a gated delta rule (arXiv 2412.06464) in the others."""

from surgery import Architecture, Slice, When, hookimpl

_FILES = {
    "mlp.experts.gate_up_proj": ("mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"),
    "mlp.experts.down_proj": ("mlp.experts.*.down_proj.weight",),
}
_WIDTHS = {
    "num_attention_heads": 16, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}  # fmt: skip

_GROUP = "linear_num_value_heads // linear_num_key_heads * linear_value_head_dim"
_KEYS, _VALUES = "linear_num_key_heads * linear_key_head_dim", "linear_num_value_heads * linear_value_head_dim"


def _query_or_gate(start: int) -> Slice:  # side by side in each head
    return Slice("*.self_attn.q_proj", ("num_attention_heads", 2, -1), 1, start)


def _of_group(start: str | int, length: str) -> Slice:  # each key's head with its values' heads
    view = ("linear_num_key_heads", f"2 * (linear_key_head_dim + {_GROUP})")
    return Slice("*.linear_attn.in_proj_qkvz", view, 1, start, length)


def _beta_or_decay(start: int) -> Slice:
    return Slice("*.linear_attn.in_proj_ba", ("linear_num_key_heads", 2, -1), 1, start)


def _part(start: str | int, length: str) -> Slice:  # one after the other
    return Slice("*.linear_attn.in_proj_qkv", (f"2 * {_KEYS} + {_VALUES}",), 0, start, length)


def _half(start: int) -> Slice:
    return Slice("*.mlp.experts.gate_up_proj", view=(2, -1), start=start, axis=1)


def _third(start: int) -> Slice:
    return Slice("*.attn.qkv", view=(3, -1), start=start)


_BEFORE_ATTENTION = When("*.input_layernorm", beside="*.self_attn")
_LAYER: dict[str, str | Slice | When | tuple[str | Slice, ...]] = {
    "norm.attention.pre": _BEFORE_ATTENTION,
    "attention.query": _query_or_gate(0),
    "norm.query": "*.self_attn.q_norm",
    **{f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("key", "value", "output")},
    "norm.key": "*.self_attn.k_norm",
    "norm.mixer.pre": When("*.input_layernorm", beside="*.linear_attn"),
    "linear_attention.conv": "*.linear_attn.conv1d",
    "linear_attention.output": "*.linear_attn.out_proj",
    "norm.mlp.pre": "*.post_attention_layernorm",
    **{f"mlp.{role}": f"*.mlp.{role}_proj" for role in ("gate", "up", "down")},
    "moe.router": "*.mlp.gate",
    "moe.experts.gate": _half(0),
    "moe.experts.up": _half(1),
    "moe.experts.down": "*.mlp.experts.down_proj",
    **{f"moe.shared.{role}": f"*.mlp.shared_expert.{role}_proj" for role in ("gate", "up", "down")},
    "moe.shared_gate": "*.mlp.shared_expert_gate",
}
_APART: dict[str, str | Slice | tuple[str | Slice, ...]] = {
    "linear_attention.query": _part(0, _KEYS),
    "linear_attention.key": _part(_KEYS, _KEYS),
    "linear_attention.value": _part(f"2 * {_KEYS}", _VALUES),
    "linear_attention.gate": "*.linear_attn.in_proj_z",
    "linear_attention.beta": "*.linear_attn.in_proj_b",
    "linear_attention.decay": ("*.linear_attn.in_proj_a", "*.linear_attn.dt_bias"),
}
_TOGETHER: dict[str, str | Slice | tuple[str | Slice, ...]] = {
    "linear_attention.query": _of_group(0, "linear_key_head_dim"),
    "linear_attention.key": _of_group("linear_key_head_dim", "linear_key_head_dim"),
    "linear_attention.value": _of_group("2 * linear_key_head_dim", _GROUP),
    "linear_attention.gate": _of_group(f"2 * linear_key_head_dim + {_GROUP}", _GROUP),
    "linear_attention.beta": _beta_or_decay(0),
    "linear_attention.decay": (_beta_or_decay(1), "*.linear_attn.dt_bias"),
}
_PLAIN = (_query_or_gate(1), "*.linear_attn.A_log", "*.linear_attn.norm")  # the gate of attention is one by head

QWEN_NEXT = Architecture(
    types=("qwen3_next",),
    base=("model", "transformer"),  # question answering says transformer
    stacks={"decoder": "layers"},
    roles={"embedding.token": "embed_tokens", **_LAYER, **_TOGETHER, "norm.final": "norm"},
    heads={"head.lm": "lm_head", "head.classifier": ("score", "qa_outputs")},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mlp.gate",),
    plain=_PLAIN,
    defaults=_WIDTHS,
    files=_FILES,
    ignored=("^mtp",),  # what predicts one more token; transformers does not read it
)

QWEN_3_5 = Architecture(
    types=("qwen3_5_text", "qwen3_5_moe_text"),
    base="model",
    stacks={"decoder": "layers"},
    roles={"embedding.token": "embed_tokens", **_LAYER, **_APART, "norm.final": "norm"},
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mlp.gate",),
    plain=_PLAIN,
    defaults=_WIDTHS,
    files={"model": "^model.language_model", **_FILES},
    ignored=("^mtp", "^model.visual"),
)

QWEN_3_5_VISION = Architecture(
    types=("qwen3_5", "qwen3_5_moe"),
    base="model",
    stacks={"vision": "visual.blocks", "decoder": "language_model.layers"},
    roles={
        **_LAYER,
        **_APART,
        "embedding.patch": "visual.patch_embed.proj",
        "embedding.position": "visual.pos_embed",
        "norm.attention.pre": (_BEFORE_ATTENTION, "*.norm1"),
        "attention.query": (_query_or_gate(0), _third(0)),
        "attention.key": ("*.self_attn.k_proj", _third(1)),
        "attention.value": ("*.self_attn.v_proj", _third(2)),
        "attention.output": ("*.self_attn.o_proj", "*.attn.proj"),
        "norm.mlp.pre": ("*.post_attention_layernorm", "*.norm2"),
        "mlp.up": ("*.mlp.up_proj", "*.mlp.linear_fc1"),
        "mlp.down": ("*.mlp.down_proj", "*.mlp.linear_fc2"),
        "norm.embedding": "visual.merger.norm",
        "embedding.projection": ("visual.merger.linear_fc1", "visual.merger.linear_fc2"),
        "embedding.token": "language_model.embed_tokens",
        "norm.final": "language_model.norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.language_model.embed_tokens.weight"},
    uncalled=("*.mlp.gate",),
    plain=_PLAIN,
    defaults=_WIDTHS,
    files=_FILES,
    ignored=("^mtp",),
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [QWEN_NEXT, QWEN_3_5, QWEN_3_5_VISION]
