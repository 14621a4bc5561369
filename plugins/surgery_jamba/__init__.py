"""Jamba: attention in some layers and a state space in the others; experts in some and one MLP in the others."""

from surgery import Architecture, Slice, When, hookimpl

_FILES = {
    "feed_forward.experts.gate_up_proj": (
        "feed_forward.experts.*.gate_proj.weight",
        "feed_forward.experts.*.up_proj.weight",
    ),
    "feed_forward.experts.down_proj": ("feed_forward.experts.*.down_proj.weight",),
}
_WIDTHS = {"mamba_d_state": 16, "mamba_dt_rank": "auto", "auto": "(hidden_size + 15) // 16"}


def _half(start: int) -> Slice:
    return Slice("*.feed_forward.experts.gate_up_proj", view=(2, -1), start=start, axis=1)


def _in(start: int) -> Slice:
    return Slice("*.mamba.in_proj", view=(2, -1), start=start)


def _x(start: int | str, length: str) -> Slice:
    return Slice("*.mamba.x_proj", ("mamba_dt_rank + 2 * mamba_d_state",), 0, start, length)


_STATE_SPACE: dict[str, str | Slice | tuple[str | Slice, ...]] = {
    "ssm.x": _in(0),
    "ssm.gate": _in(1),
    "ssm.conv": "*.mamba.conv1d",
    "ssm.dt": (_x(0, "mamba_dt_rank"), "*.mamba.dt_proj"),
    "ssm.B": _x("mamba_dt_rank", "mamba_d_state"),
    "ssm.C": _x("mamba_dt_rank + mamba_d_state", "mamba_d_state"),
    "ssm.output": "*.mamba.out_proj",
}

_PLAIN = (  # decay, skip, and the norms of dt, B and C
    "*.mamba.A_log",
    "*.mamba.D",
    "*.mamba.dt_layernorm",
    "*.mamba.b_layernorm",
    "*.mamba.c_layernorm",
)

JAMBA = Architecture(
    types=("jamba",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": When("*.input_layernorm", beside="*.self_attn"),
        **{f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("query", "key", "value", "output")},
        "norm.mixer.pre": When("*.input_layernorm", beside="*.mamba"),
        **_STATE_SPACE,
        "norm.mlp.pre": "*.pre_ff_layernorm",
        **{f"mlp.{role}": f"*.feed_forward.{role}_proj" for role in ("gate", "up", "down")},
        "moe.router": "*.feed_forward.router",
        "moe.experts.gate": _half(0),
        "moe.experts.up": _half(1),
        "moe.experts.down": "*.feed_forward.experts.down_proj",
        "norm.final": "final_layernorm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mamba.dt_proj", "*.feed_forward.router"),
    plain=_PLAIN,
    defaults=_WIDTHS,
    files=_FILES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [JAMBA]
