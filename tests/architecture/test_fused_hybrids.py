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
    beta = part["beta"].sigmoid() * (2 if getattr(mixer, "allow_neg_eigval", False) else 1)
    kept = torch.exp(-mixer.A_log.exp() * F.softplus(part["decay"] + mixer.dt_bias))
    state, out = torch.zeros(*value[:, 0].shape[:2], key.shape[-1], value.shape[-1], dtype=x.dtype), []
    for t in range(x.shape[1]):
        state = kept[:, t, :, None, None] * state
        missing = value[:, t] - (state * key[:, t, :, :, None]).sum(-2)
        state = state + beta[:, t, :, None, None] * key[:, t, :, :, None] * missing[:, :, None]
        out.append((state * query[:, t, :, :, None]).sum(-2) / math.sqrt(key.shape[-1]))
    answer, gate = torch.stack(out, dim=1), part["gate"].unflatten(-1, (heads, -1))
    norm = mixer.norm if hasattr(mixer, "norm") else mixer.o_norm
    normed = answer * torch.rsqrt(answer.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    out = mixer.out_proj if hasattr(mixer, "out_proj") else mixer.o_proj
    return out((norm.weight * normed * F.silu(gate)).flatten(2))


PARTS = tuple(f"linear_attention.{name}" for name in ("query", "key", "value", "gate", "beta", "decay"))


@pytest.mark.parametrize("role", PARTS)
@pytest.mark.parametrize("name", ["Qwen3NextModel", "Qwen3_5TextModel", "Qwen3_5MoeTextModel", "OlmoHybridModel"])
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


# Delta rule with a decay for each channel (Kimi Linear, arXiv 2510.26692) ---------------------------------------------


def channel_delta_rule(model: Any, mixer: Any, x: torch.Tensor) -> torch.Tensor:
    """The same rule; decay and gate may be compressed, and then have two maps each."""
    maps: dict[str, list[torch.Tensor]] = {}
    for site in sites(model, REGISTRY):
        if site.layer == 0 and site.role.startswith("linear_attention.") and len(site.shape) == 2:
            maps.setdefault(site.role.removeprefix("linear_attention."), []).append(rows(model, site))

    def part(name: str) -> torch.Tensor:
        made = x
        for weight in maps[name]:
            made = made @ weight.T
        return made

    heads = mixer.num_heads
    together = torch.cat([part(name) for name in ("query", "key", "value")], dim=-1).transpose(1, 2)
    kernel = mixer.conv1d.weight
    seen = F.silu(F.conv1d(F.pad(together, (kernel.shape[-1] - 1, 0)), kernel, groups=len(kernel))).transpose(1, 2)
    query, key, value = (each.unflatten(-1, (heads, -1)) for each in seen.chunk(3, dim=-1))
    query, key = (each / torch.sqrt(each.pow(2).sum(-1, keepdim=True) + 1e-6) for each in (query, key))
    forget = mixer.forget_gate
    rate, raw = forget.A_log.exp().flatten()[:, None], (part("decay") + forget.dt_bias).unflatten(-1, (heads, -1))
    is_safe = getattr(forget, "safe_gate", False)
    kept = torch.exp(forget.lower_bound * torch.sigmoid(rate * raw) if is_safe else -rate * F.softplus(raw))
    beta = part("beta").sigmoid()
    state, out = torch.zeros(*value[:, 0].shape[:2], key.shape[-1], value.shape[-1], dtype=x.dtype), []
    for t in range(x.shape[1]):
        state = kept[:, t, :, :, None] * state
        missing = value[:, t] - (state * key[:, t, :, :, None]).sum(-2)
        state = state + beta[:, t, :, None, None] * key[:, t, :, :, None] * missing[:, :, None]
        out.append((state * query[:, t, :, :, None]).sum(-2) / math.sqrt(key.shape[-1]))
    gate = part("gate").unflatten(-1, (heads, -1))
    return mixer.o_proj(mixer.o_norm(torch.stack(out, dim=1), gate).flatten(2))


@pytest.mark.parametrize("name", ["KimiLinearModel", "BailingHybridModel"])
@torch.no_grad()
def test_channel_delta_rule(name: str) -> None:
    model, batch = build(name)
    model = model.double()
    mixer = model.layers[0].self_attn
    calls = record(mixer)
    model(**batch)
    assert_near(channel_delta_rule(model, mixer, calls[0][1]["hidden_states"]), calls[0][2], calls[0][2])


# Short convolutions of LFM2 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["ssm.B", "ssm.C", "ssm.x"])
@pytest.mark.parametrize("name", ["Lfm2Model", "Lfm2MoeModel", "Lfm3Model"])
def test_gated_short_convolution(name: str, role: str) -> None:
    model, batch = build(name)
    model = model.double()
    mixer = model.layers[0].conv
    parts, calls = found(model, 0, "conv"), record(mixer)
    maps = {part: rows(model, parts[part]) for part in ("ssm.B", "ssm.C", "ssm.x")}

    def forward(x: torch.Tensor, maps: dict[str, torch.Tensor]) -> torch.Tensor:
        before, after, through = (x @ maps[part].T for part in ("ssm.B", "ssm.C", "ssm.x"))
        seen = mixer.conv((before * through).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return mixer.out_proj(after * seen)

    def call() -> torch.Tensor:
        calls.clear()
        model(**batch)
        return calls[0][2]

    plain = call()
    x = calls[0][1]["hidden_states"]
    with torch.no_grad():
        assert_near(forward(x, maps), plain, plain)
        merged, live = moved_by_lora(model, parts[role], call)
        assert_near(forward(x, {**maps, role: merged}), live, live - plain)


# Lightning attention (arXiv 2405.17381) -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["query", "key", "value", "gate"])
def test_lightning_attention(role: str) -> None:
    model, batch = build("MiniMaxModel")
    model = model.double()
    mixer = model.layers[0].self_attn
    parts, calls = found(model, 0, "self_attn"), record(mixer)
    names = ("query", "key", "value", "gate")
    maps = {name: rows(model, parts[f"linear_attention.{name}"]) for name in names}

    def forward(x: torch.Tensor, maps: dict[str, torch.Tensor]) -> torch.Tensor:
        heads = mixer.num_attention_heads
        query, key, value = (F.silu(x @ maps[name].T).unflatten(-1, (heads, -1)) for name in names[:3])
        kept = torch.exp(-mixer.slope_rate.double())
        state, out = torch.zeros(len(x), heads, key.shape[-1], value.shape[-1], dtype=x.dtype), []
        for t in range(x.shape[1]):
            state = kept * state + key[:, t, :, :, None] * value[:, t, :, None]
            out.append((state * query[:, t, :, :, None]).sum(-2))
        return mixer.out_proj(torch.sigmoid(x @ maps["gate"].T) * mixer.norm(torch.stack(out, dim=1).flatten(2)))

    def call() -> torch.Tensor:
        calls.clear()
        model(**batch)
        return calls[0][2][0]

    plain = call()
    x = calls[0][1]["hidden_states"]
    with torch.no_grad():
        assert_near(forward(x, maps), plain, plain)
        merged, live = moved_by_lora(model, parts[f"linear_attention.{role}"], call)
        assert_near(forward(x, {**maps, role: merged}), live, live - plain)


# Experts of attention (JetMoE, arXiv 2404.07413) ----------------------------------------------------------------------


@torch.no_grad()
def test_attention_of_experts() -> None:
    model, batch = build("JetMoeModel")
    attention = model.layers[0].self_attention
    parts = {site.role: site for site in sites(model, REGISTRY) if site.layer == 0 and site.path.endswith("kv_proj")}
    calls = record(attention)
    model(**batch)
    pristine = attention.kv_proj.weight.clone()
    attention.kv_proj.weight[list(parts["attention.value"].slice.indices())] = 0  # type: ignore[union-attr]
    model(**batch)
    assert torch.allclose(calls[1][2][0], attention.experts.bias.expand_as(calls[1][2][0]), atol=1e-7)
    attention.kv_proj.weight.copy_(pristine)
    attention.kv_proj.weight[list(parts["attention.key"].slice.indices())] = 0  # type: ignore[union-attr]
    model(**batch)
    attention.experts.input_linear.weight.mul_(-3)  # without keys no query matters
    model(**batch)
    assert torch.allclose(calls[2][2][0], calls[3][2][0], atol=1e-7)
    assert not torch.allclose(calls[0][2][0], calls[2][2][0], atol=1e-5)


@torch.no_grad()
def test_experts_of_jetmoe() -> None:
    model, batch = build("JetMoeModel")
    model = model.double()
    block = model.layers[0].mlp
    parts = {
        site.role: site for site in sites(model, REGISTRY) if site.layer == 0 and site.path.endswith("mlp.input_linear")
    }
    gate, up = (
        block.input_linear.weight[:, list(parts[f"moe.experts.{name}"].slice.indices())] for name in ("gate", "up")
    )
    calls = record(block)
    model(**batch)
    x = calls[0][0][0]
    best, chosen = block.router.layer(x).topk(block.router.top_k, dim=-1)
    weight = torch.zeros(*x.shape[:2], len(gate), dtype=x.dtype).scatter(-1, chosen, best.softmax(-1))
    inner = F.silu(torch.einsum("bld,eid->blei", x, gate)) * torch.einsum("bld,eid->blei", x, up)
    made = torch.einsum("blei,edi,ble->bld", inner, block.output_linear.weight, weight) + block.bias
    assert_near(made, calls[0][2], calls[0][2])
