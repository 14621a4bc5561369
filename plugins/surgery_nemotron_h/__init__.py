"""Nemotron-H: every layer is one block: a state space of Mamba 2, attention, an MLP without a gate, or such experts."""

from surgery import Architecture, Slice, When, hookimpl

_FILES: dict[str, str | tuple[str, ...]] = {
    "model": "^backbone",
    "mixer.experts.up_proj": ("mixer.experts.*.up_proj.weight",),
    "mixer.experts.down_proj": ("mixer.experts.*.down_proj.weight",),
}
_WIDTHS = {"mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128}
_WIDTH, _STATE = "mamba_num_heads * mamba_head_dim", "n_groups * ssm_state_size"
_PLAIN = (  # decay, skip, the norm between scan and output, and the maps to and from the experts' width
    "*.mixer.A_log",
    "*.mixer.D",
    "*.mixer.norm",
    "*.mixer.fc1_latent_proj",
    "*.mixer.fc2_latent_proj",
)


def _in(start: int | str, length: str) -> Slice:
    return Slice("*.mixer.in_proj", (f"2 * {_WIDTH} + 2 * {_STATE} + mamba_num_heads",), 0, start, length)


NEMOTRON_H = Architecture(
    types=("nemotron_h",),
    base="model",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embeddings",
        "norm.attention.pre": When("*.norm", beside="*.mixer.q_proj"),
        **{f"attention.{role}": f"*.mixer.{role[0]}_proj" for role in ("query", "key", "value", "output")},
        "norm.mixer.pre": When("*.norm", beside="*.mixer.in_proj"),
        "ssm.gate": _in(0, _WIDTH),
        "ssm.x": _in(_WIDTH, _WIDTH),
        "ssm.B": _in(f"2 * {_WIDTH}", _STATE),
        "ssm.C": _in(f"2 * {_WIDTH} + {_STATE}", _STATE),
        "ssm.dt": (_in(f"2 * ({_WIDTH} + {_STATE})", "mamba_num_heads"), "*.mixer.dt_bias"),
        "ssm.conv": "*.mixer.conv1d",
        "ssm.output": "*.mixer.out_proj",
        "norm.mlp.pre": (When("*.norm", beside="*.mixer.up_proj"), When("*.norm", beside="*.mixer.gate")),
        **{f"mlp.{role}": f"*.mixer.{role}_proj" for role in ("up", "down")},
        "moe.router": "*.mixer.gate",
        **{f"moe.experts.{role}": f"*.mixer.experts.{role}_proj" for role in ("up", "down")},
        **{f"moe.shared.{role}": f"*.mixer.shared_experts.{role}_proj" for role in ("up", "down")},
        "norm.final": "norm_f",
    },
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "model.embeddings.weight"},
    uncalled=("*.mixer.gate", "*.mixer.out_proj"),  # out_proj by a fused kernel in training
    plain=_PLAIN, defaults=_WIDTHS, files=_FILES, ignored=("mixer.gate.e_score_correction_bias", "^mtp"),
)  # fmt: skip


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [NEMOTRON_H]
