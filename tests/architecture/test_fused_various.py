"""What parts of weights do in DBRX, Doge, NLLB-MoE, LiLT and NeoMME, against forwards written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build
from fused import assert_near, moved_by_lora, parts_of, record, rows
from torch.nn import functional as F

from surgery import load_registry, sites

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
