"""gpt-oss: experts stored (fan_in, fan_out) with biases, gate and up in turns; attention with sinks."""

from surgery import Architecture, Slice, hookimpl


def _every_other(start: int) -> tuple[Slice, Slice]:
    fused = "*.mlp.experts.gate_up_proj"
    return (
        Slice(fused, view=(-1, 2), dim=1, start=start, axis=2),
        Slice(f"{fused}_bias", view=(-1, 2), dim=1, start=start, axis=1),
    )


GPT_OSS = Architecture(
    types=("gpt_oss",),
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
        "moe.router": "*.mlp.router",
        "moe.experts.gate": _every_other(0),
        "moe.experts.up": _every_other(1),
        "moe.experts.down": ("*.mlp.experts.down_proj", "*.mlp.experts.down_proj_bias"),
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mlp.router",),
    transposed_experts=True,
    plain=("*.self_attn.sinks",),  # one logit for each head
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [GPT_OSS]
