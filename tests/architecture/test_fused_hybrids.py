"""What the parts of linear attention do, against a forward written out here from its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from families import build
from fused import assert_near, moved_by_lora, record, rows
from torch.nn import functional as F

from surgery import Site, load_registry, sites

REGISTRY = load_registry()


def found(model: Any, layer: int, child: str) -> dict[str, Site]:
    """Sites of weights and of loose parameters below one module of a layer, by role."""
    inside = [site for site in sites(model, REGISTRY) if site.layer == layer and f".{child}." in f".{site.name}"]
    return {site.role: site for site in inside if site.parameter == "weight" and len(site.shape) == 2}


# Gated delta rule (arXiv 2412.06464) ---------------------------------------------------------------------------------


def delta_rule(mixer: Any, x: torch.Tensor, maps: dict[str, torch.Tensor]) -> torch.Tensor:
    """S' = a S + beta k (v - (a S)^T k)^T; the answer is S^T q. A head of keys serves several of values."""
    part = {role.removeprefix("linear_attention."): x @ weight.T for role, weight in maps.items()}
    together = torch.cat([part[name] for name in ("query", "key", "value")], dim=-1).transpose(1, 2)
    kernel = mixer.conv1d.weight
    seen = F.silu(F.conv1d(F.pad(together, (kernel.shape[-1] - 1, 0)), kernel, groups=len(kernel))).transpose(1, 2)
    query, key, value = seen.split([part[name].shape[-1] for name in ("query", "key", "value")], dim=-1)
    heads, keys = mixer.num_v_heads, mixer.num_k_heads
    query, key = (each.unflatten(-1, (keys, -1)) for each in (query, key))
    query, key = (each * torch.rsqrt(each.pow(2).sum(-1, keepdim=True) + 1e-6) for each in (query, key))
    query, key = (each.repeat_interleave(heads // keys, dim=2) for each in (query, key))
    value = value.unflatten(-1, (heads, -1))
    beta = part["beta"].sigmoid()
    kept = torch.exp(-mixer.A_log.exp() * F.softplus(part["decay"] + mixer.dt_bias))
    state, out = torch.zeros(*value[:, 0].shape[:2], key.shape[-1], value.shape[-1], dtype=x.dtype), []
    for t in range(x.shape[1]):
        state = kept[:, t, :, None, None] * state
        missing = value[:, t] - (state * key[:, t, :, :, None]).sum(-2)
        state = state + beta[:, t, :, None, None] * key[:, t, :, :, None] * missing[:, :, None]
        out.append((state * query[:, t, :, :, None]).sum(-2) / math.sqrt(key.shape[-1]))
    answer, gate = torch.stack(out, dim=1), part["gate"].unflatten(-1, (heads, -1))
    normed = answer * torch.rsqrt(answer.pow(2).mean(-1, keepdim=True) + mixer.norm.variance_epsilon)
    return mixer.out_proj((mixer.norm.weight * normed * F.silu(gate)).flatten(2))


PARTS = tuple(f"linear_attention.{name}" for name in ("query", "key", "value", "gate", "beta", "decay"))


@pytest.mark.parametrize("role", PARTS)
@pytest.mark.parametrize("name", ["Qwen3NextModel", "Qwen3_5TextModel", "Qwen3_5MoeTextModel"])
def test_delta_rule(name: str, role: str) -> None:
    model, batch = build(name)
    model = model.double()
    mixer = model.layers[0].linear_attn
    calls = record(mixer)
    parts = found(model, 0, "linear_attn")
    assert set(parts) == {*PARTS, "linear_attention.output"}
    maps = {part: rows(model, parts[part]) for part in PARTS}

    def call() -> torch.Tensor:
        calls.clear()
        model(**batch)
        return calls[0][2]

    plain = call()
    x = calls[0][1]["hidden_states"]
    with torch.no_grad():
        assert_near(delta_rule(mixer, x, maps), plain, plain)
        merged, live = moved_by_lora(model, parts[role], call)
        assert_near(delta_rule(mixer, x, {**maps, role: merged}), live, live - plain)


# Attention whose query stands beside a gate in each head --------------------------------------------------------------


@pytest.mark.parametrize("name", ["Qwen3NextModel", "Qwen3_5TextModel", "Qwen3_5MoeTextModel"])
@torch.no_grad()
def test_the_query_without_the_gate(name: str) -> None:
    model, batch = build(name)
    model = model.double()
    attention = model.layers[1].self_attn
    parts = [site for site in sites(model, REGISTRY) if site.path == "layers.1.self_attn.q_proj"]
    assert [site.role for site in parts] == ["attention.query", "other.layers.1.self_attn.q_proj"]
    fused, normed, gated = record(attention.q_proj), record(attention.q_norm), []
    attention.o_proj.register_forward_pre_hook(lambda _, args: gated.append(args[0]))
    model(**batch)
    query, gate = (fused[0][2][..., list(site.slice.indices())] for site in parts if site.slice)
    assert torch.equal(normed[0][0][0].flatten(2), query)
    attention.q_proj.weight[list(parts[1].slice.indices())] = 0  # type: ignore[union-attr]
    model(**batch)
    assert torch.allclose(gated[1] * 2 * torch.sigmoid(gate), gated[0], rtol=1e-5, atol=1e-8)
