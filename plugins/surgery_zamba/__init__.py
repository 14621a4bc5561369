"""Zamba and Zamba2: state spaces, and before some of them one transformer layer (or a few) that all of these share."""

from surgery import Architecture, Slice, When, hookimpl

_RANK = {"mamba_d_state": 16, "mamba_dt_rank": "auto", "auto": "(hidden_size + 15) // 16", "hidden_size": 3712}
_WIDTHS = {"hidden_size": 2560, "mamba_expand": 2, "mamba_d_state": 64, "mamba_ngroups": 1, "n_mamba_heads": 8,
           "num_mem_blocks": 1}  # fmt: skip
_WIDTH, _STATE = "mamba_expand * hidden_size", "mamba_ngroups * mamba_d_state"
_MIXERS = ("*.mamba", "*.mamba_decoder.mamba")


def _turns(start: int) -> tuple[Slice, ...]:  # of what is scanned and its gate, row by row
    return tuple(Slice(f"{mixer}.in_proj", (-1, 2), 1, start) for mixer in _MIXERS)


def _x(start: int | str, length: str) -> tuple[Slice, ...]:  # a matrix for each head
    whole = ("mamba_dt_rank + 2 * mamba_d_state",)
    return tuple(Slice(f"{mixer}.x_proj_weight", whole, 0, start, length, 1) for mixer in _MIXERS)


def _in(start: int | str, length: str) -> tuple[Slice, ...]:
    whole = (f"2 * {_WIDTH} + 2 * {_STATE} + n_mamba_heads",)
    return tuple(Slice(f"{mixer}.in_proj", whole, 0, start, length) for mixer in _MIXERS)


def _half(start: int) -> Slice:
    return Slice("*.shared_transformer.feed_forward.gate_up_proj", view=(2, -1), start=start)


def _each(*names: str) -> tuple[str, ...]:
    return tuple(f"{mixer}.{name}" for mixer in _MIXERS for name in names)


_BEFORE_MIXER = (When("*.input_layernorm", beside="*.mamba"), "*.mamba_decoder.input_layernorm")
_PLAIN = (*_each("A_log", "D", "norm"), "*.linear")  # decay, skip, norm after the scan; the map after the shared layer
_ADAPTERS = (  # small maps of its own that each place of a shared layer adds to it
    *(f"*.shared_transformer.self_attn.linear_{name}_adapter_list.*.*" for name in "qkv"),
    "*.shared_transformer.feed_forward.gate_up_proj_adapter_list.*.*",
)
_QKVO = ("query", "key", "value", "output")

ZAMBA = Architecture(
    types=("zamba",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.shared_transf.input_layernorm",
        **{f"attention.{role}": f"*.shared_transf.self_attn.{role[0]}_proj" for role in _QKVO},
        "norm.mlp.pre": "*.shared_transf.pre_ff_layernorm",
        **{f"mlp.{role}": f"*.shared_transf.feed_forward.{role}_proj" for role in ("gate", "up", "down")},
        "norm.mixer.pre": _BEFORE_MIXER,
        "ssm.x": _turns(0),
        "ssm.gate": _turns(1),
        "ssm.conv": _each("conv1d"),
        "ssm.dt": (*_x(0, "mamba_dt_rank"), *_each("dt_proj_weight", "dt_proj_bias")),
        "ssm.B": _x("mamba_dt_rank", "mamba_d_state"),
        "ssm.C": _x("mamba_dt_rank + mamba_d_state", "mamba_d_state"),
        "ssm.output": _each("out_proj"),
        "norm.final": "final_layernorm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    plain=_PLAIN,
    defaults=_RANK,
    shared={"layers.*.shared_transf": ("layers.*.linear", 1)},
)

ZAMBA_2 = Architecture(
    types=("zamba2",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.shared_transformer.input_layernorm",
        **{f"attention.{role}": f"*.shared_transformer.self_attn.{role[0]}_proj" for role in _QKVO},
        "norm.mlp.pre": "*.shared_transformer.pre_ff_layernorm",
        "mlp.gate": _half(0),
        "mlp.up": _half(1),
        "mlp.down": "*.shared_transformer.feed_forward.down_proj",
        "norm.mixer.pre": _BEFORE_MIXER,
        "ssm.gate": _in(0, _WIDTH),
        "ssm.x": _in(_WIDTH, _WIDTH),
        "ssm.B": _in(f"2 * {_WIDTH}", _STATE),
        "ssm.C": _in(f"2 * {_WIDTH} + {_STATE}", _STATE),
        "ssm.dt": (*_in(f"2 * ({_WIDTH} + {_STATE})", "n_mamba_heads"), *_each("dt_bias")),
        "ssm.conv": _each("conv1d"),
        "ssm.output": _each("out_proj"),
        "norm.final": "final_layernorm",
    },
    heads={"head.lm": "lm_head", "head.classifier": "score"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=_each("out_proj"),  # by a fused kernel in training
    plain=(*_PLAIN, *_ADAPTERS),
    defaults=_WIDTHS,
    shared={"layers.*.shared_transformer": ("layers.*.linear", "num_mem_blocks")},
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [ZAMBA, ZAMBA_2]
