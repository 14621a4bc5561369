"""What parts of weights do in recurrences and unusual experts, against forwards written out from their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build
from fused import assert_near, record, rows
from torch.nn import functional as F

from surgery import load_registry, sites

REGISTRY = load_registry()


def weights(model: Any, family: str, layer: int = 0) -> dict[str, torch.Tensor]:
    """Role, without its family -> the rows of the one weight that has it in a layer."""
    found: dict[str, torch.Tensor] = {}
    for site in sites(model, REGISTRY):
        if site.layer == layer and site.role.startswith(f"{family}.") and "bias" not in site.parameter:
            assert site.role.removeprefix(f"{family}.") not in found
            found[site.role.removeprefix(f"{family}.")] = rows(model, site)
    return found


# Latent attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [("KimiLinearModel", "layers.1.self_attn"), ("BailingHybridModel", "layers.1.self_attn"),
     ("LongcatFlashModel", "layers.0.self_attn.1"), ("DeepseekV32Model", "layers.0.self_attn"),
     ("GlmMoeDsaModel", "layers.1.self_attn"), ("HYV4Model", "layers.0.self_attn")],
)  # fmt: skip
@torch.no_grad()
def test_latent_parts(name: str, path: str) -> None:
    model, batch = build(name)
    attention: Any = model.get_submodule(path)
    found = (site for site in sites(model, REGISTRY) if site.path.startswith(f"{path}.kv_"))
    parts = {site.role: list(site.slice.indices()) for site in found if site.slice}
    down, up, normed = (
        record(attention.kv_a_proj_with_mqa),
        record(attention.kv_b_proj),
        record(attention.kv_a_layernorm),
    )
    expanded: list[Any] = []
    expand = attention.expand_kv
    attention.expand_kv = lambda *args: expanded.append((args, expand(*args))) or expanded[-1][1]
    model(**batch)
    heads, nope = attention.num_heads, attention.qk_nope_head_dim
    (_, shared), (key, value) = expanded[0]
    assert torch.equal(normed[0][0][0], down[0][2][..., parts["attention.kv_down"]])
    if name == "KimiLinearModel":  # the others turn it by its position
        assert torch.equal(shared[:, 0], down[0][2][..., parts["attention.key_rope"]])
    latent = up[0][2][:, 0] if up[0][2].dim() == 4 else up[0][2]
    for role, made in (("key", key[..., :nope]), ("value", value)):
        assert torch.equal(made.transpose(1, 2), latent[..., parts[f"attention.{role}"]].unflatten(-1, (heads, -1)))


# Recurrences ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_rwkv() -> None:
    """RWKV-4 (arXiv 2305.13048): a weighted mean of values so far, the newest with a bonus, behind a gate."""
    model, batch = build("RwkvModel")
    model = model.double()
    block = model.blocks[0]
    mixer, mlp = block.attention, block.feed_forward
    mixed, made = record(mixer), record(mlp)
    model(**batch)
    part = weights(model, "linear_attention")
    x = mixed[0][0][0]
    before = F.pad(x, (0, 0, 1, 0))[:, :-1]

    def project(name: str, mix: torch.Tensor) -> torch.Tensor:
        return (x * mix + before * (1 - mix)) @ part[name].T

    key, value = project("key", mixer.time_mix_key), project("value", mixer.time_mix_value)
    gate = project("gate", mixer.time_mix_receptance).sigmoid()
    above, below, out = torch.zeros_like(key[:, 0]), torch.zeros_like(key[:, 0]), []
    for t in range(x.shape[1]):
        bonus = torch.exp(key[:, t] + mixer.time_first)
        out.append((above + bonus * value[:, t]) / (below + bonus))
        kept, new = torch.exp(-torch.exp(mixer.time_decay)), torch.exp(key[:, t])
        above, below = kept * above + new * value[:, t], kept * below + new
    assert_near((gate * torch.stack(out, dim=1)) @ part["output"].T, mixed[0][2][0], mixed[0][2][0])

    maps, y = weights(model, "mlp"), made[0][0][0]
    before = F.pad(y, (0, 0, 1, 0))[:, :-1]
    inner = F.relu((y * mlp.time_mix_key + before * (1 - mlp.time_mix_key)) @ maps["up"].T).square() @ maps["down"].T
    gate = mlp.receptance(y * mlp.time_mix_receptance + before * (1 - mlp.time_mix_receptance)).sigmoid()
    assert_near(gate * inner, made[0][2][0], made[0][2][0])


@torch.no_grad()
def test_xlstm() -> None:
    """mLSTM (arXiv 2405.04517): C = f C + i v k^T, n = f n + i k; the answer is C q / max(|n^T q|, 1)."""
    model, batch = build("xLSTMModel")
    model = model.double()
    mixer, config = model.blocks[0].mlstm_layer, model.config
    calls = record(mixer)
    model(**batch)
    x, plain = calls[0][0][0], calls[0][2][0]
    part = {name: x @ weight.T for name, weight in weights(model, "linear_attention").items() if name != "output"}
    query, key, value, gate = (
        part[name].unflatten(-1, (config.num_heads, -1)) for name in ("query", "key", "value", "gate")
    )
    cap = config.gate_soft_cap
    write = cap * torch.tanh((part["beta"] + mixer.igate_preact.bias) / cap)
    keep = F.logsigmoid(cap * torch.tanh((part["decay"] + mixer.fgate_preact.bias) / cap))
    query = query / query.shape[-1] ** 0.5
    state = torch.zeros(*key[:, 0].shape, value.shape[-1], dtype=x.dtype)
    norm, largest, out = torch.zeros_like(key[:, 0]), torch.zeros_like(write[:, 0]), []
    for t in range(x.shape[1]):  # in units of exp(largest), as the paper keeps it
        before, largest = largest, torch.maximum(keep[:, t] + largest, write[:, t])
        old, new = (torch.exp(one)[..., None] for one in (keep[:, t] + before - largest, write[:, t] - largest))
        state = old[..., None] * state + new[..., None] * key[:, t, :, :, None] * value[:, t, :, None]
        norm = old * norm + new * key[:, t]
        below = torch.maximum((norm * query[:, t]).sum(-1).abs(), torch.exp(-largest)) + config.eps
        out.append((state * query[:, t, :, :, None]).sum(-2) / below[..., None])
    normed = mixer.multihead_norm(torch.stack(out, dim=1)).flatten(2)
    made = mixer.out_proj(gate.flatten(2).sigmoid() * normed)
    assert (made - plain).abs().max() < 1e-2 * plain.abs().max()  # transformers computes in bfloat16 here


@torch.no_grad()
def test_recurrent_gemma() -> None:
    """RG-LRU (arXiv 2402.19427): h = a h + sqrt(1 - a^2) (i x), a = exp(-8 r softplus(c)); r and i are of x by head."""
    model, batch = build("RecurrentGemmaModel")
    model = model.double()
    block = model.layers[0].temporal_block
    lru, calls = block.rg_lru, record(block)
    model(**batch)
    x, plain = calls[0][0][0], calls[0][2][0]
    part = weights(model, "ssm")
    assert set(part) == {"x", "gate", "conv", "B", "dt", "output"}
    scanned = block.conv_1d((x @ part["x"].T + block.linear_x.bias).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
    heads = scanned.unflatten(-1, (lru.num_attention_heads, -1))
    enters = (torch.einsum("blhi,hij->blhj", heads, part["B"]) + lru.input_gate_bias).sigmoid().flatten(2)
    step = (torch.einsum("blhi,hij->blhj", heads, part["dt"]) + lru.recurrent_gate_bias).sigmoid().flatten(2)
    kept = torch.exp(-8 * step * F.softplus(lru.recurrent_param))
    state, out = torch.zeros_like(scanned[:, 0]), []
    for t in range(x.shape[1]):
        new = enters[:, t] * scanned[:, t]
        state = new if t == 0 else kept[:, t] * state + (1 - kept[:, t].square()).sqrt() * new
        out.append(state)
    gate = block.act_fn(x @ part["gate"].T + block.linear_y.bias)
    assert_near((torch.stack(out, dim=1) * gate) @ part["output"].T + block.linear_out.bias, plain, plain)


# Experts --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_experts_of_llama_4() -> None:
    """The router's weight multiplies what enters an expert; weights are stored (fan_in, fan_out)."""
    model, batch = build("Llama4TextModel")
    model = model.double()
    block = model.layers[1].feed_forward
    halves = {
        site.role: list(site.slice.indices()) for site in sites(model, REGISTRY) if site.layer == 1 and site.slice
    }
    gate, up = (block.experts.gate_up_proj[:, :, halves[f"moe.experts.{name}"]] for name in ("gate", "up"))
    shared, router = weights(model, "moe.shared", 1), weights(model, "moe", 1)["router"]
    calls = record(block)
    model(**batch)
    x = calls[0][0][0].flatten(0, 1)
    best, chosen = (x @ router.T).topk(block.top_k, dim=-1)
    weight = torch.zeros(len(x), len(gate), dtype=x.dtype).scatter(-1, chosen, best.sigmoid())
    routed = torch.einsum("td,te->ted", x, weight)
    inner = F.silu(torch.einsum("ted,edi->tei", routed, gate)) * torch.einsum("ted,edi->tei", routed, up)
    made = torch.einsum("tei,eid->td", inner, block.experts.down_proj)
    made = made + (F.silu(x @ shared["gate"].T) * (x @ shared["up"].T)) @ shared["down"].T
    assert_near(made, calls[0][2][0], calls[0][2][0])


@torch.no_grad()
def test_experts_of_longcat() -> None:
    """Beyond the experts stand some that return what they are given; the last rows of gate and up are never read."""
    model, batch = build("LongcatFlashModel")
    model = model.double()
    block = model.layers[0].mlp
    halves = {
        site.role: list(site.slice.indices()) for site in sites(model, REGISTRY) if site.layer == 0 and site.slice
    }
    gate, up = (block.experts.gate_up_proj[:, halves[f"moe.experts.{name}"]] for name in ("gate", "up"))
    calls, routed = record(block), record(block.router)
    model(**batch)
    x = calls[0][0][0].flatten(0, 1)
    assert torch.allclose(x.float() @ weights(model, "moe")["router"].T.float(), routed[0][2][0], atol=1e-6)
    _, best, chosen = routed[0][2]
    weight = torch.zeros(len(x), len(gate), dtype=x.dtype).scatter(-1, chosen, best.double())
    real = len(block.experts.down_proj)
    inner = F.silu(torch.einsum("td,eid->tei", x, gate)) * torch.einsum("td,eid->tei", x, up)
    made = torch.einsum("tei,edi,te->td", inner[:, :real], block.experts.down_proj, weight[:, :real])
    made = made + weight[:, real:].sum(-1, keepdim=True) * x
    assert_near(made, calls[0][2].flatten(0, 1), calls[0][2])


# Encoders -------------------------------------------------------------------------------------------------------------


def silence(model: Any, *, role: str, layer: int) -> None:
    """Set everything with a role in one layer to zero, biases included."""
    for site in sites(model, REGISTRY):
        if site.layer == layer and site.role == role:
            parameter = model.get_parameter(site.name)
            index = torch.tensor(site.slice.indices() if site.slice else range(parameter.shape[0]))
            parameter.index_fill_(site.slice.axis if site.slice else 0, index, 0.0)


ENCODERS = {
    "LongformerModel": ("encoder.layer.0.attention.self", 0),
    "LEDModel": ("encoder.layers.0.self_attn.longformer_self_attn", 0),
    "LukeModel": ("encoder.layer.0.attention.self", 0),
    "MobileBertModel": ("encoder.layer.0.attention.self", 0),
    "SqueezeBertModel": ("encoder.layers.0.attention", "context_layer"),
    "ModernVBertModel": ("text_model.layers.0.attn", 0),
    "ModernBertDecoderModel": ("layers.0.attn", 0),
    "LongT5Model": ("encoder.block.0.layer.0.LocalSelfAttention", 0),
    "SwitchTransformersModel": ("encoder.block.0.layer.0.SelfAttention", 0),
}


@pytest.mark.parametrize("name", sorted(ENCODERS))
@torch.no_grad()
def test_without_values_there_is_nothing_and_without_keys_no_query_matters(name: str) -> None:
    path, index = ENCODERS[name]

    def attended(*roles: str, scale: float = 1.0) -> torch.Tensor:
        model, batch = build(name)
        for role in roles:
            silence(model, role=role, layer=0)
        for site in sites(model, REGISTRY):
            if site.layer == 0 and site.role == "attention.query":
                parameter = model.get_parameter(site.name)
                rows = torch.tensor(site.slice.indices() if site.slice else range(len(parameter)))
                parameter[rows] *= scale
        calls = record(model.get_submodule(path))
        model(**batch)
        return calls[0][2][index]

    assert torch.count_nonzero(attended("attention.value")) == 0
    without_keys = attended("attention.key")
    assert torch.count_nonzero(without_keys)
    assert torch.allclose(without_keys, attended("attention.key", scale=-300.0), atol=1e-6)
    assert not torch.allclose(attended(), attended(scale=-300.0), atol=1e-4)


@torch.no_grad()
def test_xlnet_projections_are_raw_parameters() -> None:
    """Without values attention gives nothing; without keys of tokens and of distances, no query matters."""

    def attended(*roles: str, scale: float = 1.0) -> torch.Tensor:
        model, batch = build("XLNetModel")
        batch = {name: tensor for name, tensor in batch.items() if name != "token_type_ids"}
        for role in roles:
            silence(model, role=role, layer=0)
        model.layer[0].rel_attn.q.mul_(scale)
        normed: list[torch.Tensor] = []
        model.layer[0].rel_attn.layer_norm.register_forward_pre_hook(lambda _, args: normed.append(args[0]))
        given: list[torch.Tensor] = []
        model.layer[0].rel_attn.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        model(**batch)
        return normed[0] - given[0]

    assert torch.count_nonzero(attended("attention.value")) == 0
    assert torch.count_nonzero(attended("attention.output")) == 0
    without_keys = attended("attention.key")
    assert torch.count_nonzero(without_keys)
    assert torch.allclose(without_keys, attended("attention.key", scale=-300.0), atol=1e-6)
    assert not torch.allclose(attended(), attended(scale=-300.0), atol=1e-4)


@torch.no_grad()
def test_mlp_of_moshi() -> None:
    model, batch = build("MoshiModel")
    block = model.layers[0].mlp
    halves = weights(model, "mlp")
    calls = record(block)
    model(**batch)
    x = calls[0][0][0]
    made = (F.silu(x @ halves["gate"].T) * (x @ halves["up"].T)) @ halves["down"].T
    assert torch.allclose(made, calls[0][2], atol=1e-5)


@pytest.mark.parametrize("name", ["ModernBertDecoderModel", "ModernVBertModel"])
@torch.no_grad()
def test_the_half_that_passes_the_activation(name: str) -> None:
    model, batch = build(name)
    block = (model.text_model if name == "ModernVBertModel" else model).layers[0].mlp
    stack = "encoder" if name == "ModernVBertModel" else "decoder"
    halves = {
        site.role: rows(model, site)
        for site in sites(model, REGISTRY)
        if (site.stack, site.layer) == (stack, 0) and site.slice
    }
    calls = record(block)
    model(**batch)
    x = calls[0][0][0]
    made = block.Wo(block.act(x @ halves["mlp.gate"].T) * (x @ halves["mlp.up"].T))
    assert torch.allclose(made, calls[0][2], atol=1e-5)
