"""Mamba 1 and 2, Falcon Mamba: one projection makes what is scanned and its gate; in Mamba 2 B, C and dt as well."""

from surgery import Architecture, Slice, hookimpl

_PLAIN = ("*.mixer.A_log", "*.mixer.D", "*.mixer.norm")  # decay, skip, and the norm between scan and output
_WIDTHS = {"expand": 2, "state_size": 16, "time_step_rank": "auto", "auto": "(hidden_size + 15) // 16"}
_WIDTHS_2 = {"expand": 2, "state_size": 128, "n_groups": 8, "num_heads": 128}


def _in(start: int) -> Slice:
    return Slice("*.mixer.in_proj", view=(2, -1), start=start)


def _x(start: int | str, length: str) -> Slice:
    return Slice("*.mixer.x_proj", ("time_step_rank + 2 * state_size",), 0, start, length)


def _in_2(start: int | str, length: str) -> Slice:
    whole = "2 * expand * hidden_size + 2 * n_groups * state_size + num_heads"
    return Slice("*.mixer.in_proj", (whole,), 0, start, length)


MAMBA = Architecture(
    types=("mamba", "falcon_mamba"),
    base="backbone",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embeddings",
        "norm.mixer.pre": "*.norm",
        "ssm.x": _in(0),
        "ssm.gate": _in(1),
        "ssm.conv": "*.mixer.conv1d",
        "ssm.dt": (_x(0, "time_step_rank"), "*.mixer.dt_proj"),
        "ssm.B": _x("time_step_rank", "state_size"),
        "ssm.C": _x("time_step_rank + state_size", "state_size"),
        "ssm.output": "*.mixer.out_proj",
        "norm.final": "norm_f",
    },
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "backbone.embeddings.weight"},
    # A forward reads dt_proj's weight only; in training, where a fused kernel is installed, the others' as well.
    uncalled=("*.mixer.x_proj", "*.mixer.dt_proj", "*.mixer.out_proj"),
    plain=_PLAIN,
    defaults=_WIDTHS,
)

MAMBA_2 = Architecture(
    types=("mamba2",),
    base="backbone",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embeddings",
        "norm.mixer.pre": "*.norm",
        "ssm.gate": _in_2(0, "expand * hidden_size"),
        "ssm.x": _in_2("expand * hidden_size", "expand * hidden_size"),
        "ssm.B": _in_2("2 * expand * hidden_size", "n_groups * state_size"),
        "ssm.C": _in_2("2 * expand * hidden_size + n_groups * state_size", "n_groups * state_size"),
        "ssm.dt": (_in_2("2 * (expand * hidden_size + n_groups * state_size)", "num_heads"), "*.mixer.dt_bias"),
        "ssm.conv": "*.mixer.conv1d",
        "ssm.output": "*.mixer.out_proj",
        "norm.final": "norm_f",
    },
    heads={"head.lm": "lm_head"},
    ties={"lm_head.weight": "backbone.embeddings.weight"},
    uncalled=("*.mixer.out_proj",),  # by a fused kernel in training, as above
    plain=_PLAIN,
    defaults=_WIDTHS_2,
)


@hookimpl
def surgery_architectures() -> list[Architecture]:
    return [MAMBA, MAMBA_2]
