"""What parts of weights do in DBRX, Doge, NLLB-MoE, LiLT and NeoMME, against forwards written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build
from fused import assert_near, moved_by_lora, parts_of, record, rows
from torch.nn import functional as F

from surgery import Rule, Spec, load_registry, plan, sites

REGISTRY = load_registry()


def weights(model: Any, family: str, layer: int = 0) -> dict[str, list[torch.Tensor]]:
    """Role, without its family -> the matrices that have it in a layer, in the model's order."""
    found: dict[str, list[torch.Tensor]] = {}
    for site in sites(model, REGISTRY):
        if site.layer == layer and site.role.startswith(f"{family}.") and "bias" not in site.parameter:
            found.setdefault(site.role.removeprefix(f"{family}."), []).append(rows(model, site))
    return found


@pytest.mark.parametrize("role", ["query", "key", "value"])
@torch.no_grad()
def test_the_parts_of_dbrx_are_what_the_attention_takes_apart(role: str) -> None:
    """Four heads share two heads of keys and values; what is adapted alone changes what that part gives."""
    model, batch = build("DbrxModel")
    model = model.double()
    fused, output = (model.blocks[0].norm_attn_norm.attn.get_submodule(name) for name in ("Wqkv", "out_proj"))
    made, attended = record(fused), record(output)
    model(**batch)
    parts = {name.removeprefix("attention."): site for name, site in parts_of(model, "attn.Wqkv").items()}
    assert {name: site.shape for name, site in parts.items()} == {"query": (16, 16), "key": (8, 16), "value": (8, 16)}
    x, whole = made[0][0][0], made[0][2]
    part = parts[role].slice
    assert part is not None
    assert torch.allclose(whole[..., list(part.indices())], x @ rows(model, parts[role]).T)
    # The first word sees itself only, and so its heads give their group's value.
    value = (x @ rows(model, parts["value"]).T)[:, 0].unflatten(-1, (2, 4)).repeat_interleave(2, 1).flatten(1)
    assert torch.allclose(attended[0][0][0][:, 0], value, atol=1e-6)
    before = model(**batch).last_hidden_state
    _, live = moved_by_lora(model, parts[role], lambda: model(**batch).last_hidden_state)
    moved = (live - before).abs().amax((0, 2))
    assert moved[1:].min() > 0
    assert (moved[0] > 1e-9) == (role == "value")  # one word to choose from: only its value counts


@torch.no_grad()
def test_experts_of_dbrx_are_one_below_the_other() -> None:
    model, batch = build("DbrxModel")
    model = model.double()
    block = model.blocks[0].ffn
    calls = record(block)
    model(**batch)
    part = {role: found[0] for role, found in weights(model, "moe.experts").items()}
    router = weights(model, "moe")["router"][0]
    x = calls[0][0][0].flatten(0, 1)
    gate, up, down = (part[role].unflatten(0, (3, 12)) for role in ("gate", "up", "down"))
    scores, chosen = (x @ router.T).softmax(-1).topk(2)
    scores = scores / scores.sum(-1, keepdim=True)
    expected = torch.zeros_like(x)
    for token in range(len(x)):
        for score, expert in zip(scores[token], chosen[token], strict=True):
            inner = F.silu(x[token] @ gate[expert].T) * (x[token] @ up[expert].T)
            expected[token] += score * (inner @ down[expert])
    assert_near(calls[0][2].flatten(0, 1), expected, expected)


@torch.no_grad()
def test_experts_of_doge_are_rows_of_two_tables() -> None:
    """Experts of one feature, and the MLP beside them (Doge, arXiv 2412.11834)."""
    model, batch = build("DogeForCausalLM", is_moe=True)
    model = model.double()
    calls = record(model.model.layers[0].mlp)
    model(**batch)
    part = {role: found[0] for role, found in weights(model, "moe").items()}
    x, (found, _) = calls[0][0][0], calls[0][2]
    flat = x.flatten(0, 1)
    rank, column = (flat @ part["router"].T).view(2, len(flat), 3)  # transformers mixes words here
    scores, chosen = (rank[:, :, None] + column[:, None]).flatten(1).topk(2)
    expected = (F.silu(flat @ part["shared.gate"].T) * (flat @ part["shared.up"].T)) @ part["shared.down"].T
    for token in range(len(flat)):
        for score, expert in zip(scores[token].softmax(-1), chosen[token], strict=True):
            inner = F.silu(flat[token] @ part["experts.up"][expert]) * score
            expected[token] += inner * part["experts.down"][expert]
    assert_near(found.flatten(0, 1), expected, expected)


@torch.no_grad()
def test_lilt_attends_twice_by_the_sum_of_scores() -> None:
    model, batch = build("LiltModel")
    model = model.double()
    attention = model.encoder.layer[0].attention
    words, layout = record(attention.output.dense), record(attention.layout_output.dense)
    inputs = record(attention)
    model(**batch)
    part = weights(model, "attention")
    modules = attention.self

    def heads(states: torch.Tensor, matrix: torch.Tensor, module: Any) -> torch.Tensor:
        return (states @ matrix.T + module.bias).unflatten(-1, (2, -1)).transpose(1, 2)

    x, y = inputs[0][0][:2]
    query, key, value = (
        [heads(states, matrix, getattr(modules, name)) for states, matrix, name in zip((x, y), part[role], (role, f"layout_{role}"), strict=True)]
        for role in ("query", "key", "value")
    )  # fmt: skip
    scores = sum(q @ k.mT / q.shape[-1] ** 0.5 for q, k in zip(query, key, strict=True))
    for calls, states in ((words, value[0]), (layout, value[1])):
        expected = (scores.softmax(-1) @ states).transpose(1, 2).flatten(2)
        assert_near(calls[0][0][0], expected, expected)


@torch.no_grad()
def test_a_gate_of_neomme_scales_what_the_output_projects() -> None:
    model, batch = build("NeoMMEModel")
    projection = model.layers[0].self_attn.output_projection
    inputs, given = record(projection), record(projection.o_proj)
    model(**batch)
    (output,) = weights(model, "attention")["output"]
    assert torch.equal(output, projection.o_proj.weight)
    attended, states = inputs[0][0]
    assert torch.equal(given[0][0][0], attended * (states @ projection.gate_proj.weight.T).sigmoid())


@torch.no_grad()
def test_languages_of_xmod_have_no_role() -> None:
    """Each text passes the bottleneck of its language alone: a rule on `mlp.up` must not mean all of them."""
    model, _ = build("XmodModel-languages")
    found = {site.path: site for site in sites(model, REGISTRY) if ".adapter_modules." in site.path}
    assert len(found) == 2 * 2 * 2
    assert {site.role for site in found.values()} == {f"other.{path}" for path in found}
    assert {site.role for site in sites(model, REGISTRY) if "mlp." in site.role and site.parameter == "weight"} == {
        *("mlp.up", "mlp.down", "norm.mlp.post"),
    }


@torch.no_grad()
def test_half_of_a_value_of_zaya_is_the_word_before() -> None:
    model, batch = build("ZayaModel", use_cache=False)
    model = model.double()
    projection = model.layers[1].self_attn.qkv_proj
    calls = record(projection)
    model(**batch)
    now, before = weights(model, "attention", 1)["value"]
    x = calls[0][0][0]
    shifted = F.pad(x, (0, 0, 1, 0))[:, :-1]
    value = torch.cat((x @ now.T, shifted @ before.T), -1)
    assert torch.allclose(calls[0][2][2].flatten(2), value)


@torch.no_grad()
def test_all_layers_of_zayas_router_score_the_experts() -> None:
    model, batch = build("ZayaModel", use_cache=False)
    model = model.double()
    router = model.layers[0].mlp.gate
    calls = record(router)
    model(**batch)
    down, first, second, out = weights(model, "moe")["router"]
    x = router.router_mlp.norm(calls[0][0][0] @ down.T + router.down_proj.bias)
    x = F.gelu(x @ first.T + router.router_mlp.fc1.bias)
    x = F.gelu(x @ second.T + router.router_mlp.fc2.bias)
    assert torch.allclose(calls[0][2][0], (x @ out.T).flatten(0, 1))


# (fan_out + fan_in) of each matrix that has the role, over two layers where nothing else is said.
COUNTS = {
    ("DogeForCausalLM", "attention.key"): 2 * (8 + 16),
    ("XmodForMaskedLM", "attention.query"): 2 * (16 + 16),
    ("XmodForMaskedLM", "mlp.up"): 2 * (24 + 16),
    ("LiltModel", "attention.value"): 2 * (24 + 24 + 6 + 6),
    ("LiltModel", "mlp.down"): 2 * (24 + 24 + 6 + 6),
    ("GitForCausalLM", "attention.output"): 4 * (16 + 16),
    ("GitForCausalLM", "mlp.up"): 2 * (24 + 16) + 2 * (20 + 16),
    ("DbrxForCausalLM", "attention.query"): 2 * (16 + 16),
    ("DbrxForCausalLM", "attention.value"): 2 * (8 + 16),
    ("DbrxForCausalLM", "moe.experts.up"): 2 * (3 * 12 + 16),
    ("NllbMoeForConditionalGeneration", "mlp.up"): (24 + 16) + (20 + 16),
    ("NllbMoeForConditionalGeneration", "moe.experts.down"): 2 * (16 + 24) + 2 * (16 + 20),
    ("NeoMMEForMaskedLM", "attention.output"): 2 * (2 * 16 + 16),
    ("ProphetNetForConditionalGeneration", "attention.query"): 4 * (16 + 16),
    ("ProphetNetForConditionalGeneration", "cross_attention.value"): 2 * (16 + 16),
    ("BltForCausalLM", "attention.query"): (2 + 2 + 1) * (16 + 16) + 2 * (24 + 24),
    ("BltForCausalLM", "cross_attention.key"): (1 + 2) * (16 + 16),
    ("ZayaForCausalLM", "attention.value"): 2 * 2 * (8 + 16),
    ("ZayaForCausalLM", "moe.router"): 2 * ((6 + 16) + (6 + 6) + (6 + 6) + (4 + 6)),
}


@pytest.mark.parametrize(("name", "role"), COUNTS)
def test_a_lora_of_rank_one_has_as_many_numbers_as_the_sizes_say(name: str, role: str) -> None:
    model, _ = build(name)
    rule = Rule(role=role.replace(".", r"\."), adapter="lora", rank=1)
    assert plan(Spec(name="x", rules=[rule]), model, REGISTRY).parameters == COUNTS[name, role]
