"""Kimi Linear and Bailing hybrids: a delta rule with a decay for each channel, and latent attention in between."""

from surgery import Architecture, Slice, When, hookimpl

_WIDTHS = {
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
}  # fmt: skip
_CONV = {"self_attn.conv1d.weight": tuple(f"self_attn.{name}_conv1d.weight" for name in "qkv")}
_GATE = {f"self_attn.forget_gate.{name}": f"self_attn.{name}" for name in ("dt_bias", "A_log")}
_KIMI_FILES: dict[str, str | tuple[str, ...]] = {
    **{f"self_attn.forget_gate.{name}": f"self_attn.{name}" for name in ("f_a_proj", "f_b_proj")},
    **_GATE,
    **_CONV,
    "mlp": "block_sparse_moe",
    "mlp.experts.gate_up_proj": ("mlp.experts.*.w1.weight", "mlp.experts.*.w3.weight"),
    "mlp.experts.down_proj": ("mlp.experts.*.w2.weight",),
}
_BAILING_FILES: dict[str, str | tuple[str, ...]] = {
    "model.embed_tokens": "^model.word_embeddings",
    "self_attn": "attention",
    "self_attn.forget_gate.f_proj": "self_attn.f_proj",
    **_GATE,
    **_CONV,
    "self_attn.o_proj": "self_attn.dense",
    "mlp.experts.gate_up_proj": ("mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"),
    "mlp.experts.down_proj": ("mlp.experts.*.down_proj.weight",),
}
_LATENT, _LINEAR = "*.self_attn.kv_a_proj_with_mqa", "*.self_attn.b_proj"


def _half(start: int) -> Slice:
    return Slice("*.mlp.experts.gate_up_proj", view=(2, -1), start=start, axis=1)


def _down(start: int | str, length: str) -> Slice:
    return Slice(_LATENT, ("kv_lora_rank + qk_rope_head_dim",), 0, start, length)


def _of_each_head(start: int | str, length: str) -> Slice:
    return Slice("*.self_attn.kv_b_proj", (-1, "qk_nope_head_dim + v_head_dim"), 1, start, length)


_LAYER: dict[str, str | Slice | When | tuple[str | When, ...]] = {
    "norm.attention.pre": When("*.input_layernorm", beside=_LATENT),
    "attention.query": (When("*.self_attn.q_proj", beside=_LATENT), "*.self_attn.q_b_proj"),
    "attention.query_down": "*.self_attn.q_a_proj",
    "norm.query": "*.self_attn.q_a_layernorm",
    "attention.kv_down": _down(0, "kv_lora_rank"),
    "attention.key_rope": _down("kv_lora_rank", "qk_rope_head_dim"),  # in Kimi Linear it carries no position
    "norm.key": "*.self_attn.kv_a_layernorm",
    "attention.key": _of_each_head(0, "qk_nope_head_dim"),
    "attention.value": _of_each_head("qk_nope_head_dim", "v_head_dim"),
    "attention.output": When("*.self_attn.o_proj", beside=_LATENT),
    "norm.mixer.pre": When("*.input_layernorm", beside=_LINEAR),
    **{
        f"linear_attention.{role}": When(f"*.self_attn.{role[0]}_proj", beside=_LINEAR)
        for role in ("query", "key", "value", "output")
    },
    "linear_attention.beta": _LINEAR,
    "linear_attention.conv": "*.self_attn.conv1d",
    "norm.mlp.pre": "*.post_attention_layernorm",
    **{f"mlp.{role}": f"*.mlp.{role}_proj" for role in ("gate", "up", "down")},
    "moe.router": "*.mlp.gate",
    "moe.experts.gate": _half(0),
    "moe.experts.up": _half(1),
    "moe.experts.down": "*.mlp.experts.down_proj",
    **{f"moe.shared.{role}": f"*.mlp.shared_experts.{role}_proj" for role in ("gate", "up", "down")},
}
_PLAIN = ("*.self_attn.forget_gate.A_log", "*.self_attn.o_norm")  # base decay, and the norm before the output

KIMI_LINEAR = Architecture(
    types=("kimi_linear",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        **_LAYER,
        "linear_attention.decay": tuple(
            f"*.self_attn.forget_gate.{name}" for name in ("f_a_proj", "f_b_proj", "dt_bias")
        ),
        "linear_attention.gate": ("*.self_attn.g_a_proj", "*.self_attn.g_b_proj"),
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head"},
    uncalled=("*.mlp.gate",),
    plain=_PLAIN,
    defaults=_WIDTHS,
    files=_KIMI_FILES,
    ignored=("mlp.gate.e_score_correction_bias", "block_sparse_moe.gate.e_score_correction_bias"),
)

BAILING_HYBRID = Architecture(
    types=("bailing_hybrid",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        **_LAYER,
        "linear_attention.decay": ("*.self_attn.forget_gate.f_proj", "*.self_attn.forget_gate.dt_bias"),
        "linear_attention.gate": When("*.self_attn.g_proj", beside=_LINEAR),
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head"},
    uncalled=("*.mlp.gate",),
    plain=(*_PLAIN, When("*.self_attn.g_proj", beside=_LATENT)),  # one gate for each head of attention
    defaults=_WIDTHS,
    files=_BAILING_FILES,
    ignored=(
        "mlp.gate.e_score_correction_bias",
        "mlp.gate.expert_bias",
        When("^model.layers.42", {"num_hidden_layers": 42}),
    ),
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [KIMI_LINEAR, BAILING_HYBRID]
