"""Granite with experts: attention throughout, or state spaces of Mamba 2 in most layers."""

from surgery import Architecture, Slice, When, hookimpl

_FILES = {
    "block_sparse_moe.experts.gate_up_proj": "block_sparse_moe.input_linear.weight",
    "block_sparse_moe.experts.down_proj": "block_sparse_moe.output_linear.weight",
    "block_sparse_moe.router": "block_sparse_moe.router.layer",
}
_WIDTHS = {
    "hidden_size": 4096, "mamba_expand": 2, "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256,
    "num_local_experts": 8,
}  # fmt: skip
_WIDTH, _STATE = "mamba_expand * hidden_size", "mamba_n_groups * mamba_d_state"
_DENSE = {"num_local_experts": 0}


def _half(start: int) -> Slice:
    return Slice("*.block_sparse_moe.experts.gate_up_proj", view=(2, -1), start=start, axis=1)


def _shared(start: int) -> Slice:
    return Slice("*.shared_mlp.input_linear", view=(2, -1), start=start)


def _in(start: int | str, length: str) -> Slice:
    return Slice("*.mamba.in_proj", (f"2 * {_WIDTH} + 2 * {_STATE} + mamba_n_heads",), 0, start, length)


_ATTENTION = {f"attention.{role}": f"*.self_attn.{role[0]}_proj" for role in ("query", "key", "value", "output")}
_EXPERTS: dict[str, str | Slice] = {
    "norm.mlp.pre": "*.post_attention_layernorm",
    "moe.router": "*.block_sparse_moe.router",
    "moe.experts.gate": _half(0),
    "moe.experts.up": _half(1),
    "moe.experts.down": "*.block_sparse_moe.experts.down_proj",
}
_STATE_SPACE: dict[str, str | Slice | When | tuple[str | Slice, ...]] = {
    "norm.mixer.pre": When("*.input_layernorm", beside="*.mamba"),
    "ssm.gate": _in(0, _WIDTH),
    "ssm.x": _in(_WIDTH, _WIDTH),
    "ssm.B": _in(f"2 * {_WIDTH}", _STATE),
    "ssm.C": _in(f"2 * {_WIDTH} + {_STATE}", _STATE),
    "ssm.dt": (_in(f"2 * ({_WIDTH} + {_STATE})", "mamba_n_heads"), "*.mamba.dt_bias"),
    "ssm.conv": "*.mamba.conv1d",
    "ssm.output": "*.mamba.out_proj",
}

GRANITE_MOE = Architecture(
    types=("granitemoe", "granitemoeshared"),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": "*.input_layernorm",
        **_ATTENTION,
        **_EXPERTS,
        "moe.shared.gate": _shared(0),
        "moe.shared.up": _shared(1),
        "moe.shared.down": "*.shared_mlp.output_linear",
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.block_sparse_moe.router",),
    files=_FILES,
)

GRANITE_HYBRID = Architecture(
    types=("granitemoehybrid",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embed_tokens",
        "norm.attention.pre": When("*.input_layernorm", beside="*.self_attn"),
        **_ATTENTION,
        **_STATE_SPACE,
        **_EXPERTS,
        "moe.shared.gate": When(_shared(0), beside="*.block_sparse_moe"),
        "moe.shared.up": When(_shared(1), beside="*.block_sparse_moe"),
        "moe.shared.down": When("*.shared_mlp.output_linear", beside="*.block_sparse_moe"),
        "mlp.gate": When(_shared(0), _DENSE),  # without experts it is no other's companion
        "mlp.up": When(_shared(1), _DENSE),
        "mlp.down": When("*.shared_mlp.output_linear", _DENSE),
        "norm.final": "norm",
    },
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embed_tokens.weight"},
    uncalled=("*.block_sparse_moe.router", "*.mamba.out_proj"),  # out_proj by a fused kernel in training
    plain=("*.mamba.A_log", "*.mamba.D", "*.mamba.norm"),  # decay, skip, and the norm between scan and output
    defaults=_WIDTHS,
    files=_FILES,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [GRANITE_MOE, GRANITE_HYBRID]
