"""IA3: learned factors on outputs and inputs, against their definition and against peft's."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from families import build
from operating import REGISTRY, base_bits, logits, move, operated, planned, unchanged
from torch import nn

from surgery import operate
from surgery.errors import PlanError
from surgery.operation import host
from surgery.testing import assert_same_state, model_state

PAPER = {"role": r"attention\.(key|value)|mlp\.down", "adapter": "ia3"}
MODELS = ("BertForMaskedLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "Phi3ForCausalLM",
          "LlamaForCausalLM", "T5ForConditionalGeneration")  # fmt: skip
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 0.06}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_papers_recipe(name: str, dtype: torch.dtype) -> None:
    model, batch = build(name)
    model = model.to(dtype)
    plain, before = logits(model, batch), model_state(model)
    op = operate(model, planned(model, PAPER), registry=REGISTRY)
    assert torch.equal(logits(model, batch), plain), "factors of one give the base's bits"
    op.merge()
    assert {key: bits for key, bits in base_bits(model).items() if bits != before.bits[key]} == {}
    op.unmerge()
    move(op)
    live = logits(model, batch)
    assert (live - plain).abs().max() > 1e-3
    model(**batch)[0].float().square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in op.trainable().values())
    op.merge()
    assert (logits(model, batch) - live).abs().max() <= BOUNDS[dtype] * live.abs().max()
    op.undo()
    assert_same_state(before, model_state(model), "after IA3")


@pytest.mark.parametrize("rescale", ["outputs", "inputs"])
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPTNeoXForCausalLM", "BertForMaskedLM"])
def test_merged_weights_are_rescaled_and_rounded_once(name: str, rescale: str) -> None:
    model, _ = build(name)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    with (
        unchanged(model),
        operated(model, {**PAPER, "role": r"attention\.(key|value)|mlp\.up", "rescale": rescale}) as op,
    ):
        scales = {op.trainable_sites()[name].key: tensor for name, tensor in op.trainable().items()}
        op.merge()
        for edit in op.body.plans["default"].edits:
            scale = scales[edit.site.key]
            for site in edit.sites:
                index = torch.tensor(
                    site.slice.indices() if site.slice else range(site.shape[-1 if site.is_transposed else 0])
                )
                axis = site.slice.axis if site.slice else (1 if site.is_transposed else 0)
                old = before[site.name].double().index_select(axis, index)
                factors = scale.detach().double()
                if site.parameter == "weight":
                    is_column = (rescale == "inputs") != site.is_transposed
                    factors = factors.unsqueeze(0 if is_column else 1)
                new = model.get_parameter(site.name).detach().index_select(axis, index)
                assert torch.equal(new, (old * factors).float()), site.key
            assert (len(edit.sites) == 2) == (rescale == "outputs")


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BertForMaskedLM"])
def test_inputs_are_rescaled_without_a_folded_weight(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(name)
    rule = {"role": r"mlp\.down", "adapter": "ia3"}
    with operated(model, rule):
        original = host.fold_chain
        with monkeypatch.context() as patch:
            patch.setattr(host, "factored_chain", lambda *_: None)
            folded = logits(model, batch)
        monkeypatch.setattr(host, "fold_chain", lambda *_: pytest.fail("folded"))
        assert (logits(model, batch) - folded).abs().max() <= 1e-5 * folded.abs().max()
        monkeypatch.setattr(host, "fold_chain", original)


@pytest.mark.parametrize("experts", ["separate", "shared"])
@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM"])
@pytest.mark.parametrize("rescale", ["auto", "outputs"])
def test_experts(name: str, way: str, rescale: str, experts: str) -> None:
    model, batch = build(name, hidden_size=16, intermediate_size=24)
    model.set_experts_implementation(way)
    plain, before = logits(model, batch), model_state(model)
    rule = {"role": r"moe\.experts\..*", "target": r".*_proj", "adapter": "ia3", "experts": experts, "rescale": rescale}
    decided = planned(model, rule)
    vectors = 4 if experts == "separate" else 1
    assert decided.parameters == 2 * vectors * (2 * 24 + (24 if rescale == "auto" else 16))
    with operate(model, decided, registry=REGISTRY) as op:
        assert torch.equal(logits(model, batch), plain)
        assert all(tensor.dim() == 1 for tensor in op.trainable().values()), "vectors do not decay"
        move(op)
        live = logits(model, batch)
        assert (live - plain).abs().max() > 1e-4
        op.merge()
        assert (logits(model, batch) - live).abs().max() <= 2e-5 * live.abs().max()
        moved = {key.rpartition(".")[2] for key, bits in base_bits(model).items() if bits != before.bits[key]}
        biases = {"gate_up_proj_bias"} | ({"down_proj_bias"} if rescale == "outputs" else set())
        assert moved == {"gate_up_proj", "down_proj"} | (biases if name.startswith("GptOss") else set())
    assert_same_state(before, model_state(model), "after IA3 on experts")


def test_a_bias_that_an_earlier_rule_took_is_an_error_of_the_plan() -> None:
    model, _ = build("BertForMaskedLM")
    with pytest.raises(PlanError, match="bias"):
        planned(
            model, {"role": r"attention\.key", "adapter": "bias-only"}, {"role": r"attention\.key", "adapter": "ia3"}
        )
    kept = planned(model, {"role": r"mlp\.down", "adapter": "bias-only"}, {"role": r"mlp\.down", "adapter": "ia3"})
    assert {edit.adapter for edit in kept.edits} == {"bias-only", "ia3"}


# peft -----------------------------------------------------------------------------------------------------------------

PEFT: dict[str, tuple[dict[str, list[str]], list[dict[str, Any]]]] = {
    "BertForMaskedLM": (
        {
            "target_modules": ["key", "value", "intermediate.dense", "output.dense"],
            "feedforward_modules": ["output.dense"],
        },
        [
            {"role": r"attention\.(key|value)|mlp\.(up|down)", "adapter": "ia3"},
            {"role": r"attention\.output", "adapter": "ia3", "rescale": "inputs"},
        ],
    ),
    "GPT2LMHeadModel": (
        {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]},
        [{"role": r"attention\.(query|key|value)|mlp\.down", "adapter": "ia3"}],
    ),
}


@pytest.mark.parametrize("name", sorted(PEFT))
def test_peft_has_as_many_parameters_and_the_same_outputs(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft", reason="peft is not installed: pip install '.[bench]'")
    model, batch = build(name)
    plain = logits(model, batch)
    settings, rules = PEFT[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(model), peft.IA3Config(**settings))
    trained = {key: value for key, value in theirs.named_parameters() if value.requires_grad}
    with operate(model, planned(model, *rules), registry=REGISTRY) as op:
        assert sum(p.numel() for p in op.trainable().values()) == sum(p.numel() for p in trained.values())
        move(op, 4)
        sites = op.trainable_sites()
        with torch.no_grad():
            for key, vector in trained.items():
                path = key.removeprefix("base_model.model.").partition(".ia3_l")[0]
                own = [(site, op.trainable()[k]) for k, site in sites.items() if site.path == path]
                whole = vector.view(-1)
                for site, scale in own:
                    index = torch.tensor(site.slice.indices()) if site.slice else torch.arange(len(scale))
                    whole[index] = scale
                assert own, key
        live = logits(model, batch)
        assert (live - plain).abs().max() > 1e-3
        theirs.eval()
        assert (logits(theirs, batch) - live).abs().max() <= 1e-6 * live.abs().max().clamp_min(1)
        op.merge()
        theirs.merge_adapter()
        assert (logits(theirs, batch) - logits(model, batch)).abs().max() <= 1e-6 * live.abs().max().clamp_min(1)
        assert isinstance(model, nn.Module)
