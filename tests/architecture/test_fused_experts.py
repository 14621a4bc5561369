"""What the parts of fused weights do, against a forward written out here from their definitions.

For experts see `tests/operation/test_operation_experts.py`, which compares with a copy that keeps them apart.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build
from fused import assert_near, convolved, moved_by_lora, parts_of, record, rows, scan
from torch import nn
from torch.nn import functional as F

# Latent attention -----------------------------------------------------------------------------------------------------


def latent_attention(
    attention: Any, x: torch.Tensor, position: torch.Tensor, maps: dict[str, torch.Tensor]
) -> torch.Tensor:
    """DeepSeek's attention with a matrix of its own for each role; positions turned pair by pair, as both versions do."""
    config = attention.config
    heads, nope, rope = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    batch, length, _ = x.shape

    def turn(pairs: torch.Tensor) -> torch.Tensor:
        # One pair only in this tiny model, so that its order in memory does not matter.
        angle = position.to(pairs.dtype).view(1, length, 1)
        first, second = pairs[..., 0], pairs[..., 1]
        return torch.stack(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1
        )

    query = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(x))).view(batch, length, heads, nope + rope)
    latent = attention.kv_a_layernorm(x @ maps["attention.kv_down"].T)
    shared = turn((x @ maps["attention.key_rope"].T).view(batch, length, 1, rope)).expand(-1, -1, heads, -1)
    key = torch.cat([(latent @ maps["attention.key"].T).view(batch, length, heads, nope), shared], dim=-1)
    query = torch.cat([query[..., :nope], turn(query[..., nope:])], dim=-1)
    value = (latent @ maps["attention.value"].T).view(batch, length, heads, config.v_head_dim)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * (nope + rope) ** -0.5
    scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
    mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
    return attention.o_proj(mixed.reshape(batch, length, -1))


@pytest.mark.parametrize("role", ["attention.kv_down", "attention.key_rope", "attention.key", "attention.value"])
@pytest.mark.parametrize("name", ["DeepseekV2Model", "DeepseekV3Model"])
def test_latent_attention(name: str, role: str) -> None:
    model, batch = build(name)
    model = model.double()
    attention = model.layers[0].self_attn
    found = {**parts_of(model, "kv_a_proj_with_mqa"), **parts_of(model, "kv_b_proj")}
    assert set(found) == {"attention.kv_down", "attention.key_rope", "attention.key", "attention.value"}
    calls = record(attention)
    maps = {name: rows(model, site) for name, site in found.items()}

    def call() -> torch.Tensor:
        calls.clear()
        model(**batch)
        return calls[0][2][0]

    plain = call()
    x, position = calls[0][1]["hidden_states"], torch.arange(7)
    with torch.no_grad():
        assert_near(latent_attention(attention, x, position, maps), plain, plain)
        merged, live = moved_by_lora(model, found[role], call)
        assert_near(latent_attention(attention, x, position, {**maps, role: merged}), live, live - plain)


# State spaces ---------------------------------------------------------------------------------------------------------


def mamba(mixer: Any, x: torch.Tensor, maps: dict[str, torch.Tensor]) -> torch.Tensor:
    inner = convolved(mixer, x @ maps["ssm.x"].T)
    low, b, c = (inner @ maps[role].T for role in ("ssm.dt", "ssm.B", "ssm.C"))
    if hasattr(mixer, "dt_layernorm"):  # Jamba, Falcon Mamba
        low, b, c = mixer.dt_layernorm(low), mixer.b_layernorm(b), mixer.c_layernorm(c)
    step = F.softplus(low @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
    y = scan(inner, step, -mixer.A_log.exp(), b[:, :, None], c[:, :, None]) + mixer.D * inner
    return mixer.out_proj(y * F.silu(x @ maps["ssm.gate"].T))


def mamba_2(mixer: Any, x: torch.Tensor, maps: dict[str, torch.Tensor]) -> torch.Tensor:
    together = convolved(mixer, torch.cat([x @ maps[role].T for role in ("ssm.x", "ssm.B", "ssm.C")], dim=-1))
    width, state = mixer.intermediate_size, mixer.n_groups * mixer.ssm_state_size
    inner, b, c = together.split([width, state, state], dim=-1)

    def each(values: torch.Tensor) -> torch.Tensor:  # (batch, length, groups * state) -> one row for each channel
        grouped = values.unflatten(-1, (mixer.n_groups, mixer.ssm_state_size))
        return grouped.repeat_interleave(width // mixer.n_groups, dim=2)

    wide = mixer.head_dim
    step = F.softplus(x @ maps["ssm.dt"].T + mixer.dt_bias).clamp(min=mixer.time_step_limit[0])
    step = step.repeat_interleave(wide, dim=-1)
    decay = -mixer.A_log.exp().repeat_interleave(wide)[:, None]
    y = scan(inner, step, decay, each(b), each(c)) + mixer.D.repeat_interleave(wide) * inner
    gate = x @ maps["ssm.gate"].T
    return mixer.out_proj(y * F.silu(gate) if isinstance(mixer.norm, nn.Identity) else mixer.norm(y, gate))


def falcon_h1(mixer: Any, x: torch.Tensor, maps: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each part of the projection has a factor of its own."""
    factors = zip(STATE_SPACE_2, mixer.layer_factors, strict=True)
    return mamba_2(mixer, x * mixer.ssm_in_multiplier, {role: maps[role] * factor for role, factor in factors})


STATE_SPACE = ("ssm.x", "ssm.gate", "ssm.dt", "ssm.B", "ssm.C")
STATE_SPACE_2 = ("ssm.gate", "ssm.x", "ssm.B", "ssm.C", "ssm.dt")

SPACES = {
    "MambaModel": (mamba, "mixer", STATE_SPACE),
    "Mamba2Model": (mamba_2, "mixer", STATE_SPACE_2),
    "JambaModel": (mamba, "mamba", STATE_SPACE),
    "FalconMambaModel": (mamba, "mixer", STATE_SPACE),
    "BambaModel": (mamba_2, "mamba", STATE_SPACE_2),
    "GraniteMoeHybridModel": (mamba_2, "mamba", STATE_SPACE_2),
    "NemotronHModel": (mamba_2, "mixer", STATE_SPACE_2),
    "Zamba2Model": (mamba_2, "mamba", STATE_SPACE_2),
    "FalconH1Model": (falcon_h1, "mamba", STATE_SPACE_2),
}


@pytest.mark.parametrize(("name", "role"), [(name, role) for name, (_, _, roles) in SPACES.items() for role in roles])
def test_state_spaces(name: str, role: str) -> None:
    forward, child, roles = SPACES[name]
    model, batch = build(name)
    model = model.double()
    mixer = getattr(model.layers[0], child)
    mixer.layer_factors = getattr(model.config, "ssm_multipliers", None)
    found = {**parts_of(model, "in_proj"), **parts_of(model, "x_proj")}
    assert set(found) == set(roles)
    calls = record(mixer)
    maps = {name: rows(model, site) for name, site in found.items()}

    def call() -> torch.Tensor:
        calls.clear()
        model(**batch)
        return calls[0][2]

    plain = call()
    x = calls[0][0][0] if calls[0][0] else calls[0][1]["hidden_states"]
    with torch.no_grad():
        assert_near(forward(mixer, x, maps), plain, plain)
        merged, live = moved_by_lora(model, found[role], call)
        assert_near(forward(mixer, x, {**maps, role: merged}), live, live - plain)


def test_heads_of_zamba() -> None:
    """Rows of what is scanned and of its gate take turns; each head has a projection of its own to dt, B and C."""
    model, batch = build("ZambaModel")
    model = model.double()
    mixer = model.layers[0].mamba
    found = {**parts_of(model, "in_proj"), **parts_of(model, "mamba")}
    assert set(found) == set(STATE_SPACE)
    calls = record(mixer)
    model(**batch)
    x, plain = calls[0][1]["hidden_states"], calls[0][2]
    heads, width = mixer.n_mamba_heads, mixer.mamba_head_dim
    low, b, c = (mixer.x_proj_weight[:, list(found[role].slice.indices())] for role in ("ssm.dt", "ssm.B", "ssm.C"))
    with torch.no_grad():
        inner = convolved(mixer, x @ rows(model, found["ssm.x"]).T).unflatten(-1, (heads, width))
        gate = (x @ rows(model, found["ssm.gate"]).T).unflatten(-1, (heads, width))
        made = []
        for head in range(heads):
            here = inner[:, :, head]
            step = F.softplus(here @ low[head].T @ mixer.dt_proj_weight[head].T + mixer.dt_proj_bias[head])
            scanned = scan(
                here, step, -mixer.A_log[head].exp(), (here @ b[head].T)[:, :, None], (here @ c[head].T)[:, :, None]
            )
            made.append((scanned + mixer.D[head] * here) * F.silu(gate[:, :, head]))
        assert_near(mixer.out_proj(torch.cat(made, dim=-1)), plain, plain)
