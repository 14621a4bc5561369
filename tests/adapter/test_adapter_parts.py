"""What adapter authors build with: updates of outputs, parts of fused weights that are not contiguous, replacements."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from surgery import (
    Architecture,
    Part,
    ReplacementAdapter,
    Rule,
    Site,
    Slice,
    Spec,
    add_update,
    load_registry,
    operate,
    plan,
    spread_parts,
)
from surgery.operation.fold import canonical_view, fold_chain
from surgery.registry import Provenance, Registered, Registry
from surgery.testing import assert_same_state, model_state

INSTALLED = load_registry()


def site(part: Part | None = None, host: str = "linear", shape: tuple[int, ...] = (12, 5)) -> Site:
    if part is not None:
        shape = (*shape[: part.axis], part.size, *shape[part.axis + 1 :])
    return Site("attention.query", "", 0, "m", "weight", shape, "float32", host, part)


@st.composite
def parts(draw: st.DrawFn) -> Part:
    view = draw(st.sampled_from([(12,), (3, 4), (2, 3, 2), (2, 6), (6, 2), (3, 2, 2)]))
    dim = draw(st.integers(0, len(view) - 1))
    start = draw(st.integers(0, view[dim] - 1))
    return Part(0, view, dim, start, draw(st.integers(1, view[dim] - start)))


@settings(max_examples=60, deadline=None)
@given(st.lists(parts(), min_size=1, max_size=3))
def test_spread_parts_puts_every_row_where_it_belongs(chosen: list[Part]) -> None:
    matrices = [torch.randn(part.size, 2) for part in chosen]
    spread = spread_parts([(site(part), matrix) for part, matrix in zip(chosen, matrices, strict=True)], 12)
    expected = torch.zeros(12, 2 * len(chosen))
    for column, (part, matrix) in enumerate(zip(chosen, matrices, strict=True)):
        expected[list(part.indices()), 2 * column : 2 * column + 2] = matrix
    assert torch.equal(spread, expected)


@pytest.mark.parametrize("output", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_add_update(output: torch.dtype, shape: tuple[int, ...], has_bias: bool) -> None:
    low, matrix = torch.randn(*shape, 2), torch.randn(4, 2)
    bias = torch.randn(4) if has_bias else None
    before = torch.randn(*shape, 4).to(output)
    kept = before.clone()
    after = add_update(before, low, matrix, 0.5, bias)
    assert (after.shape, after.dtype) == (before.shape, output)
    assert torch.equal(before, kept), "not in place"
    wanted = before.double() + 0.5 * (low.double() @ matrix.double().t() + (0 if bias is None else bias.double()))
    assert torch.allclose(
        after.double(),
        wanted,
        rtol=2e-2 if output == torch.bfloat16 else 1e-5,
        atol=1e-2 if output == torch.bfloat16 else 1e-5,
    )


@settings(max_examples=40, deadline=None)
@given(parts())
def test_folding_a_part_changes_that_part_alone(part: Part) -> None:
    weight = torch.randn(12, 5)
    own = site(part)
    adapter = ReplacementAdapter(own, canonical_view(weight, own).clone())
    with torch.no_grad():
        adapter.value.fill_(7.0)
    folded = fold_chain("weight", weight, [(adapter, own)])
    rows = torch.zeros(12, dtype=torch.bool)
    rows[list(part.indices())] = True
    assert bool((folded[rows] == 7).all())
    assert torch.equal(folded[~rows], weight[~rows])
    assert not bool((weight == 7).any())


@pytest.mark.parametrize("host", ["linear", "conv1d", "embedding"])
def test_a_replacement_starts_as_a_contiguous_copy_in_the_hosts_own_layout(host: str) -> None:
    weight = torch.randn(4, 6)
    own = site(host=host, shape=(4, 6))
    adapter = ReplacementAdapter(own, canonical_view(weight.clone(), own))
    assert torch.equal(adapter.value, weight)
    assert adapter.value.is_contiguous()
    assert torch.equal(fold_chain("weight", weight, [(adapter, own)]), weight)
    assert adapter.replaces


# A model whose heads are interleaved: (groups, query | key | value, width) ---------------------------------------------


class Interleaved(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Module()])
        self.layers[0].qkv = nn.Linear(6, 12) if kind == "linear" else Conv1D(12, 6)
        nn.init.normal_(self.layers[0].qkv.bias)
        self.config = SimpleNamespace(model_type="interleaved")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers[0].qkv(inputs)
        return out


def registry(kind: str) -> Registry:
    axis = 0 if kind == "linear" else 1
    roles = {
        f"attention.{name}": Slice("*.qkv", view=(2, 3, -1), dim=1, start=start, axis=axis)
        for start, name in enumerate(("query", "key", "value"))
    }
    here = Provenance("t", "tests", "")
    architecture = Architecture(("interleaved",), "", {"decoder": "layers"}, roles)
    return Registry(INSTALLED.adapters, {"interleaved": Registered(architecture, here)}, {}, {}, {})


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(
    "options",
    [
        {"adapter": "lora", "rank": 1},
        {"adapter": "lora", "rank": 1, "bias": True},
        {"adapter": "full"},
        {"adapter": "bias-only"},
    ],
    ids=str,
)
@pytest.mark.parametrize("role", [r"attention\.key", r"attention\.(query|value)", r"attention\..*"])
def test_interleaved_parts_are_adapted_merged_and_given_back(kind: str, options: dict[str, Any], role: str) -> None:
    model, known = Interleaved(kind).eval(), registry(kind)
    inputs = torch.randn(5, 6)
    plain, before = model(inputs), model_state(model)
    decided = plan(Spec(name="x", rules=[Rule(role=role, allow_oversized=True, **options)]), model, known)
    touched = sorted(
        {index for edit in decided.edits for index in (edit.site.slice.indices() if edit.site.slice else range(12))}
    )
    others = [index for index in range(12) if index not in touched]
    with operate(model, decided, registry=known) as op:
        assert torch.equal(model(inputs), plain)
        with torch.no_grad():
            for parameter in op.trainable().values():
                parameter.add_(torch.randn(parameter.shape))
        live = model(inputs)
        assert torch.equal(live[:, others], plain[:, others])
        assert bool((live[:, touched] != plain[:, touched]).any(0).all())
        op.merge()
        assert torch.allclose(model(inputs), live, atol=1e-4)
        assert torch.equal(model(inputs)[:, others], plain[:, others])
        op.unmerge()
        assert torch.equal(model(inputs), live)
    assert_same_state(before, model_state(model))
