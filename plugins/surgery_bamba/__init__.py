"""Bamba and Falcon-H1: state spaces of Mamba 2, with attention in other layers or in the same ones."""

from surgery import Architecture, Slice, When, hookimpl

_HEAD = {"mamba_d_head": "auto", "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256}
_WIDTH, _STATE = "mamba_n_heads * mamba_d_head", "mamba_n_groups * mamba_d_state"


def _in(start: int | str, length: str) -> Slice:
    return Slice("*.mamba.in_proj", (f"2 * {_WIDTH} + 2 * {_STATE} + mamba_n_heads",), 0, start, length)


_LAYER: dict[str, str | Slice | tuple[str | Slice, ...]] = {
    **{f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("query", "key", "value", "output")},
    "ssm.gate": _in(0, _WIDTH),
    "ssm.x": _in(_WIDTH, _WIDTH),
    "ssm.B": _in(f"2 * {_WIDTH}", _STATE),
    "ssm.C": _in(f"2 * {_WIDTH} + {_STATE}", _STATE),
    "ssm.dt": (_in(f"2 * ({_WIDTH} + {_STATE})", "mamba_n_heads"), "*.mamba.dt_bias"),
    "ssm.conv": "*.mamba.conv1d",
    "ssm.output": "*.mamba.out_proj",
    "norm.mlp.pre": "*.pre_ff_layernorm",
    **{f"mlp.{role}": f"*.feed_forward.{role}_proj" for role in ("gate", "up", "down")},
}
_PLAIN = ("*.mamba.A_log", "*.mamba.D", "*.mamba.norm")  # decay, skip, and the norm between scan and output

BAMBA = Architecture(
    types=("bamba",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": When("*.input_layernorm", beside="*.self_attn"),
        "norm.mixer.pre": When("*.input_layernorm", beside="*.mamba"),
        **_LAYER,
        "norm.final": "final_layernorm",
    },
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mamba.out_proj",),  # by a fused kernel in training
    plain=_PLAIN,
    defaults={**_HEAD, "auto": "mamba_expand * hidden_size // mamba_n_heads", "mamba_expand": 2, "hidden_size": 4096},
)

FALCON_H1 = Architecture(
    types=("falcon_h1",),
    base="model",
    stacks={"decoder": "layers"},
    roles={  # one norm feeds attention and the state space
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",
        **_LAYER,
        "norm.final": "final_layernorm",
    },
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.mamba.out_proj",),  # by a fused kernel in training
    plain=_PLAIN,
    defaults={**_HEAD, "auto": "mamba_d_ssm // mamba_n_heads", "mamba_d_ssm": 1024},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [BAMBA, FALCON_H1]
