"""OLMo hybrids: a gated delta rule with norms before it, and attention with norms after it."""

from surgery import Architecture, When, hookimpl

_FILES: dict[str, str | tuple[str, ...]] = {
    "input_layernorm": "attention_layer_norm",
    "post_attention_layernorm": "feedforward_layer_norm",
    "linear_attn.conv1d.weight": tuple(f"linear_attn.{name}_conv1d.weight" for name in "qkv"),
}
_LINEAR, _ATTENTION = "*.linear_attn", "*.self_attn"

OLMO_HYBRID = Architecture(
    types=("olmo_hybrid",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        **{f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("query", "key", "value", "output")},
        "norm.query": "*.self_attn.q_norm",
        "norm.key": "*.self_attn.k_norm",
        "norm.attention.post": When("*.post_attention_layernorm", beside=_ATTENTION),
        "norm.mlp.post": "*.post_feedforward_layernorm",
        "norm.mixer.pre": "*.input_layernorm",
        **{
            f"linear_attention.{role}": f"{_LINEAR}.{role[0]}_proj"
            for role in ("query", "key", "value", "gate", "beta")
        },
        "linear_attention.decay": ("*.linear_attn.a_proj", "*.linear_attn.dt_bias"),
        "linear_attention.conv": "*.linear_attn.conv1d",
        "linear_attention.output": "*.linear_attn.o_proj",
        "norm.mlp.pre": When("*.post_attention_layernorm", beside=_LINEAR),
        **{f"mlp.{role}": f"*.mlp.{role}_proj" for role in ("gate", "up", "down")},
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    plain=("*.linear_attn.A_log", "*.linear_attn.o_norm"),  # base decay, and the norm before the output
    files=_FILES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [OLMO_HYBRID]
