"""Latent attention to some tokens only, which an indexer chooses: DeepSeek V3.2, GLM with such attention, HY V4."""

from surgery import Architecture, Slice, When, hookimpl

_FILES = {
    "mlp.experts.gate_up_proj": ("mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"),
    "mlp.experts.down_proj": ("mlp.experts.*.down_proj.weight",),
}
_PARTS = ("fn", "base", "scale")
_HY_FILES = {  # `hc_pre` stands in either of two places, as transformers writes it or as the first files have it
    "self_attn.sinks": "self_attn.learnable_sink_param",
    "gate_proj": "linear_gate",
    **{holder: f"hc_pre.{holder}" for holder in ("hc_attn_layer", "hc_mlp_layer", "hc_head")},
    **{
        f"{holder}.hc_{name}": f"{holder}.hc_pre.hc_{name}"
        for holder in ("hc_attn_layer", "hc_mlp_layer")
        for name in _PARTS
    },
    **{f"attn_hc.{name}": f"hc_attn_layer.hc_{name}" for name in _PARTS},
    **{f"ffn_hc.{name}": f"hc_mlp_layer.hc_{name}" for name in _PARTS},
    **{f"hc_head.hc_head_{name}": f"hc_head.hc_pre.hc_head_{name}" for name in _PARTS},
    **{f"hc_head.hc_{name}": f"hc_head.hc_head_{name}" for name in _PARTS},
}
_WIDTHS = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
_WIDE = {**_WIDTHS, "qk_nope_head_dim": 192, "v_head_dim": 256}
_INDEXER = tuple(f"*.self_attn.indexer.{name}" for name in ("wq_b", "wk", "k_norm", "weights_proj"))
_MIXED = ("*.self_attn.sinks", "*.self_attn.gate_proj", *(  # sinks, gates of heads, and how several streams are mixed
    f"{holder}.{name}" for holder in ("*.attn_hc", "*.ffn_hc") for name in ("fn", "base", "scale")
), *(f"hc_head.hc_{name}" for name in ("fn", "base", "scale")))  # fmt: skip
_BALANCE = "mlp.gate.e_score_correction_bias"  # a buffer, which is not trained


def _half(start: int) -> Slice:
    return Slice("*.mlp.experts.gate_up_proj", view=(2, -1), start=start, axis=1)


def _down(start: int | str, length: str) -> Slice:
    return Slice("*.self_attn.kv_a_proj_with_mqa", ("kv_lora_rank + qk_rope_head_dim",), 0, start, length)


def _of_each_head(start: int | str, length: str) -> Slice:
    return Slice("*.self_attn.kv_b_proj", (-1, "qk_nope_head_dim + v_head_dim"), 1, start, length)


_ROLES: dict[str, str | Slice] = {
    "embedding.token": "embed_tokens",
    "norm.attention.pre": "*.input_layernorm",
    "attention.query_down": "*.self_attn.q_a_proj",
    "norm.query": "*.self_attn.q_a_layernorm",
    "attention.query": "*.self_attn.q_b_proj",
    "attention.kv_down": _down(0, "kv_lora_rank"),
    "attention.key_rope": _down("kv_lora_rank", "qk_rope_head_dim"),
    "norm.key": "*.self_attn.kv_a_layernorm",
    "attention.key": _of_each_head(0, "qk_nope_head_dim"),
    "attention.value": _of_each_head("qk_nope_head_dim", "v_head_dim"),
    "attention.output": "*.self_attn.o_proj",
    "norm.mlp.pre": "*.post_attention_layernorm",
    **{f"mlp.{role}": f"*.mlp.{role}_proj" for role in ("gate", "up", "down")},
    "moe.router": "*.mlp.gate",
    "moe.experts.gate": _half(0),
    "moe.experts.up": _half(1),
    "moe.experts.down": "*.mlp.experts.down_proj",
    **{f"moe.shared.{role}": f"*.mlp.shared_experts.{role}_proj" for role in ("gate", "up", "down")},
    "norm.final": "norm",
}

DEEPSEEK_V32 = Architecture(
    types=("deepseek_v32",),
    base="model",
    stacks={"decoder": "layers"},
    roles=_ROLES,
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mlp.gate",),
    plain=_INDEXER,
    defaults=_WIDTHS,
    files=_FILES,
    ignored=(_BALANCE, When("^model.layers.61", {"num_hidden_layers": 61})),
)

GLM_DSA = Architecture(
    types=("glm_moe_dsa",),
    base="model",
    stacks={"decoder": "layers"},
    roles=_ROLES,
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mlp.gate",),
    plain=_INDEXER,
    defaults=_WIDE,
    files=_FILES,
    ignored=(_BALANCE, When("^model.layers.78", {"num_hidden_layers": 78})),
)

HY_V4 = Architecture(
    types=("hy_v4",),
    base="model",
    stacks={"decoder": "layers"},
    roles=_ROLES,
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mlp.gate",),
    plain=(*_INDEXER, *_MIXED),
    defaults=_WIDE,
    files=_HY_FILES,
    ignored=(_BALANCE, "^model.mtp_layers"),
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [DEEPSEEK_V32, GLM_DSA, HY_V4]
