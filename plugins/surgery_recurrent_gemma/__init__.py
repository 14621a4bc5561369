"""RecurrentGemma: gated linear recurrences (arXiv 2402.19427) in most layers and attention in the others."""

from surgery import Architecture, When, hookimpl

_GATES = "*.temporal_block.rg_lru"

RECURRENT_GEMMA = Architecture(
    types=("recurrent_gemma",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": When("*.temporal_pre_norm", beside="*.temporal_block.q_proj"),
        **{f"attention.{role}": f"*.temporal_block.{role[0]}_proj" for role in ("query", "key", "value", "output")},
        "norm.mixer.pre": When("*.temporal_pre_norm", beside="*.temporal_block.linear_x"),
        "ssm.x": "*.temporal_block.linear_x",
        "ssm.gate": "*.temporal_block.linear_y",
        "ssm.conv": "*.temporal_block.conv_1d",
        "ssm.B": (f"{_GATES}.input_gate_weight", f"{_GATES}.input_gate_bias"),
        "ssm.dt": (f"{_GATES}.recurrent_gate_weight", f"{_GATES}.recurrent_gate_bias"),
        "ssm.output": "*.temporal_block.linear_out",
        "norm.mlp.pre": "*.channel_pre_norm",
        **{f"mlp.{role}": f"*.mlp_block.{role}_proj" for role in ("gate", "up", "down")},
        "norm.final": "final_norm",
    },
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    plain=(f"{_GATES}.recurrent_param",),  # the decay
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [RECURRENT_GEMMA]
