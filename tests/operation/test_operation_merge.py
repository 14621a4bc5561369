"""Merging: one rounding from the pristine weight, any order, any subset; refused whole where it would do harm."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from families import build
from operating import LORA, REGISTRY, base_bits, logits, move, operated, planned, unchanged
from torch import nn

from surgery import operate
from surgery.errors import DriftError, StateError
from surgery.operation.bits import same_bits
from surgery.testing import ToyModel, assert_same_state, model_state

PLANS: dict[str, tuple[dict[str, Any], ...]] = {
    "a": ({"role": r"attention\..*|mlp\..*", **LORA},),
    "b": ({"role": r"attention\.(query|key)", "adapter": "lora", "rank": 1}, {"role": r"norm\..*", "adapter": "full"}),
    "c": ({"target": ".*", "adapter": "full", "tied": "share"},),
}


def three(model: nn.Module) -> Any:
    op = operate(model, planned(model, *PLANS["a"]), name="a", registry=REGISTRY)
    op.add(planned(model, *PLANS["b"]), "b")
    op.add(planned(model, *PLANS["c"]), "c")
    for seed, name in enumerate("abc"):
        move(op, seed, 0.2, name)
    return op


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_live_bits_depend_on_the_set_alone(dtype: torch.dtype) -> None:
    model = ToyModel(dtype=dtype)
    before = model_state(model)
    op = three(model)
    expected: dict[frozenset[str], dict[str, bytes]] = {}
    for size in (1, 2, 3):
        for order in itertools.permutations("abc", size):
            for name in order:
                op.merge(name)
            bits = base_bits(model)
            assert expected.setdefault(frozenset(order), bits) == bits, order
            for name in reversed(order) if size == 2 else order:
                op.unmerge(name)
                if op.merged:
                    assert expected.setdefault(op.merged, base_bits(model)) == base_bits(model), order
            assert base_bits(model) == before.bits
    op.merge()
    assert base_bits(model) == expected[frozenset("abc")]
    assert len({tuple(bits.items()) for bits in expected.values()}) == 7, "every set is another model"
    op.undo()
    assert_same_state(before, model_state(model))


def test_unmerge_gives_back_the_very_tensors() -> None:
    model = ToyModel()
    held = {key: parameter.data_ptr() for key, parameter in model.named_parameters()}
    with three(model) as op:
        op.merge()
        op.unmerge()
        assert {key: parameter.data_ptr() for key, parameter in model.named_parameters() if key in held} == held


def test_remove_and_add_while_others_are_merged() -> None:
    model = ToyModel()
    before = model_state(model)
    op = three(model)
    op.merge("b")
    only_b = base_bits(model)
    op.merge("a", "c")
    op.remove("a")
    op.remove("c")
    assert (op.names, op.merged) == (("b",), frozenset("b"))
    assert base_bits(model) == only_b
    with unchanged(model), pytest.raises(StateError, match="a merge is live in"):
        op.add(planned(model, *PLANS["a"]), "a")
    op.add(planned(model, {"role": r"mlp\.down", **LORA}), "free")  # b does not touch it
    op.merge("free")
    op.unmerge("b")
    op.remove("free")
    op.remove("b")
    assert op.names == ()
    assert base_bits(model) == before.bits
    op.undo()
    assert_same_state(before, model_state(model))


def test_a_merged_adapter_and_a_live_one_add_up() -> None:
    model, batch = build("GPT2LMHeadModel")
    with three(model) as op:
        expected = logits(model, batch)
        for chosen in ("a", "b", "c", "ab", "bc", "ac", "abc"):
            op.merge(*chosen)
            assert torch.allclose(logits(model, batch), expected, atol=1e-4), chosen
            op.unmerge()
            assert torch.equal(logits(model, batch), expected)


def test_disabled_puts_everything_aside_and_brings_it_back_by_pointer() -> None:
    model, batch = build("GPT2LMHeadModel")
    plain = logits(model, batch)
    with three(model) as op:
        op.merge("a", "c")
        merged = logits(model, batch)
        with unchanged(model, "by disabled()"):
            with op.disabled():
                assert torch.equal(logits(model, batch), plain)
            with op.disabled("b"), unchanged(model):
                logits(model, batch)
            with pytest.raises(ZeroDivisionError), op.disabled():
                raise ZeroDivisionError
        assert torch.equal(logits(model, batch), merged)
        op.unmerge()
        with op.disabled("a", "b"):
            without = logits(model, batch)
        op.remove("a")
        op.remove("b")
        assert torch.equal(logits(model, batch), without)


# Rounding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("ratio", [1e-3, 1e-2, 0.1, 1.0])
def test_the_merged_weight_is_the_rounded_sum(dtype: torch.dtype, ratio: float) -> None:
    """768 x 768, rank 8: merged = round(W + dW computed in float64) in at least 99.99 % of the elements."""
    generator = torch.Generator().manual_seed(int(ratio * 1000))
    model = nn.Sequential(nn.Linear(768, 768, bias=False, dtype=dtype))
    model[0].weight.data = (torch.randn(768, 768, generator=generator) * 0.02).to(dtype)
    pristine = model[0].weight.detach().double()
    with operate(
        model, planned(model, {"target": "0", "adapter": "lora", "rank": 8, "alpha": 16}), registry=REGISTRY
    ) as op:
        tensors = {name.rpartition(".")[2]: parameter for name, parameter in op.trainable().items()}
        with torch.no_grad():
            tensors["B"].copy_(torch.randn(768, 8, generator=generator))
            delta = 2.0 * (tensors["B"].double() @ tensors["A"].double())
            tensors["B"].mul_(ratio * pristine.norm() / delta.norm())
        delta = 2.0 * (tensors["B"].detach().double() @ tensors["A"].detach().double())
        (record,) = op.merge()
        wanted = oracle(pristine + delta, dtype)
        right = float(same_bits(model[0].weight, wanted).double().mean())
        assert right >= 0.9999, right
        stored = model[0].weight.detach().double() - pristine
        assert record.name == "0.weight"
        assert record.elements == 768 * 768
        assert record.delta_rel == pytest.approx(ratio, rel=1e-3)
        assert record.realised_delta_rel_err == pytest.approx(float((stored - delta).norm() / delta.norm()), rel=1e-6)
        assert record.unmoved == pytest.approx(float((stored == 0).double().mean()), abs=1e-6)
        assert set(record.to_dict()) == {"name", "delta_rel", "realised_delta_rel_err", "unmoved", "elements"}
        if dtype == torch.bfloat16 and ratio == 1e-3:
            assert record.unmoved > 0.5, "the user must see that most of this update is lost"
        if dtype == torch.float32:
            assert record.realised_delta_rel_err < 1e-3


def oracle(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 rounded to nearest even, once: of the candidate and its two neighbours the nearest, ties to even."""
    if dtype == torch.float32:
        return value.float()
    start = value.to(dtype)
    up = torch.nextafter(start.float(), torch.full((), torch.inf)).to(dtype)
    best, error = start, (start.double() - value).abs()
    bits = start.view(torch.int16)
    for offset in (-1, 1):
        near = (bits + offset).view(dtype)
        distance = (near.double() - value).abs()
        closer = (distance < error) | (
            (distance == error) & ((bits + offset) & 1 == 0) & (best.view(torch.int16) & 1 == 1)
        )
        best, error = torch.where(closer, near, best), torch.where(closer, distance, error)
    assert up.dtype == dtype
    return best


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_key_block_of_gpt2_is_untouched_bit_for_bit(dtype: torch.dtype) -> None:
    model, _ = build("GPT2LMHeadModel")
    model.to(dtype)
    attention = model.transformer.h[1].attn.c_attn
    before, bias = attention.weight.detach().clone(), attention.bias.detach().clone()
    with operated(model, {"role": r"attention\.(query|value)", "adapter": "lora", "rank": 2, "bias": True}) as op:
        op.merge()
        assert same_bits(attention.weight[:, 16:32], before[:, 16:32]).all()
        assert same_bits(attention.bias[16:32], bias[16:32]).all()
        for part in (slice(0, 16), slice(32, 48)):
            assert not same_bits(attention.weight[:, part], before[:, part]).all()
            assert not same_bits(attention.bias[part], bias[part]).all()


# Refused whole ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_an_adapter_that_is_not_finite_is_refused_whole(value: float, adapter: str) -> None:
    model = ToyModel()
    rule = {"role": r"mlp\..*", "adapter": adapter}
    with operated(model, rule if adapter == "full" else {**rule, "rank": 2}) as op:
        op.add(planned(model, {"role": r"attention\..*", **LORA}), "fine")
        with torch.no_grad():
            list(op.trainable("default").values())[-1].view(-1)[-1] = value
        with unchanged(model, "by a refused merge"), pytest.raises(StateError, match="NaN or inf") as caught:
            op.merge()
        assert "nothing was merged" in caught.value.hint
        assert op.merged == frozenset()
        op.merge("fine")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_weight_that_would_overflow_is_refused_whole(dtype: torch.dtype) -> None:
    model = ToyModel(dtype=dtype)
    top = torch.finfo(dtype).max
    with operated(model, {"role": r"mlp\..*", **LORA}) as op:
        with torch.no_grad():
            tensors = op.trainable()
            for name, tensor in tensors.items():
                if "layers.1.down" in name:
                    tensor.fill_(float(top) ** 0.5 if dtype != torch.float16 else 300.0)
            if dtype != torch.float16:
                model.body.layers[1].down.weight.data  # noqa: B018 - large already through the adapter alone
        with (
            unchanged(model, "by a refused merge"),
            pytest.raises(StateError, match="would turn finite weights") as caught,
        ):
            op.merge()
        assert caught.value.where == "body.layers.1.down.weight"


def test_a_base_with_nan_and_inf_merges_and_comes_back() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    special = torch.tensor([[0x7FC12345, 0x7F800000, -(2**31)], [-8388608, 0x3F800000, 1]], dtype=torch.int32)
    model[0].weight.data.view(torch.int32).copy_(special)
    with unchanged(model), operated(model, {"target": "0", "adapter": "lora", "rank": 1}) as op:
        op.merge()
        merged = model[0].weight.detach().view(torch.int32)
        assert merged[0, 0] == 0x7FC12345, "a NaN keeps its payload"
        assert merged[0, 1] == 0x7F800000
        assert merged[1, 1] != 0x3F800000


def test_a_replaced_nan_is_replaced() -> None:
    """What full tuning has repaired must not come back through a merge."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data[0, 0] = float("nan")
    with unchanged(model), operate(model, planned(model, {"target": "0", "adapter": "full"}), registry=REGISTRY) as op:
        with torch.no_grad():
            for parameter in op.trainable().values():
                parameter.fill_(0.5)
        live = model(torch.ones(1, 2))
        op.merge()
        assert torch.equal(model(torch.ones(1, 2)), live)


# Drift --------------------------------------------------------------------------------------------------------------


def _class(model: ToyModel) -> Any:
    host = model.body.layers[1].down
    old, host.__class__ = host.__class__, nn.Linear
    return lambda: setattr(host, "__class__", old)


def _child(model: ToyModel) -> Any:
    host = model.body.layers[1].down
    old = host._modules.pop("surgery")
    return lambda: host._modules.__setitem__("surgery", old)


def _parameter(model: ToyModel) -> Any:
    host = model.body.layers[1].down
    old, host._parameters["weight"] = (
        host._parameters["weight"],
        nn.Parameter(host._parameters["weight"].detach().clone() + 1),
    )
    return lambda: host._parameters.__setitem__("weight", old)


def _gone(model: ToyModel) -> Any:
    host = model.body.layers[1].down
    old = host._parameters.pop("weight")
    return lambda: host._parameters.__setitem__("weight", old)


def _data(model: ToyModel) -> Any:
    parameter = model.body.layers[1].down._parameters["weight"]
    old, parameter.data = parameter.data, parameter.data.clone() * 2
    return lambda: setattr(parameter, "data", old)


def _bit(model: ToyModel) -> Any:
    bits = model.body.layers[1].down._parameters["weight"].data.view(torch.int32)
    bits.view(-1)[7] ^= 1
    return lambda: bits.view(-1)[7].bitwise_xor_(torch.tensor(1, dtype=torch.int32))


def _sign_of_zero(model: ToyModel) -> Any:
    data = model.body.layers[1].down._parameters["weight"].data
    old = data.clone()
    data.view(torch.int32).view(-1)[7] ^= -(2**31)
    return lambda: data.copy_(old)


def _dtype(model: ToyModel) -> Any:
    parameter = model.body.layers[1].down._parameters["weight"]
    old, parameter.data = parameter.data, parameter.data.double()
    return lambda: setattr(parameter, "data", old)


def _shape(model: ToyModel) -> Any:
    parameter = model.body.layers[1].down._parameters["weight"]
    old, parameter.data = parameter.data, parameter.data.t().contiguous()
    return lambda: setattr(parameter, "data", old)


def _tie(model: ToyModel) -> Any:
    old = model.head._parameters["weight"]
    model.head._parameters["weight"] = nn.Parameter(old.detach().clone())
    return lambda: model.head._parameters.__setitem__("weight", old)


DRIFTS = (_class, _child, _parameter, _gone, _data, _bit, _sign_of_zero, _dtype, _shape, _tie)


@pytest.mark.parametrize("drift", DRIFTS, ids=lambda act: act.__name__[1:])
@pytest.mark.parametrize("is_merged", [False, True], ids=["live", "merged"])
def test_drift_is_noticed_and_nothing_is_touched(drift: Any, is_merged: bool) -> None:
    model = ToyModel()
    before = model_state(model)
    op = operated(model, {"target": ".*", "adapter": "full", "tied": "share"})
    if is_merged:
        op.merge()
    repair = drift(model)
    acts = [op.undo, op.finalize] + ([op.unmerge] if is_merged else [op.merge])
    for act in acts:
        with unchanged(model, f"by a refused {act.__name__}"), pytest.raises(DriftError) as caught:
            act()
        assert "down" in str(caught.value) or "head" in str(caught.value)
        assert caught.value.hint
    repair()
    op.undo()
    assert_same_state(before, model_state(model), "after the repair")


def test_a_kept_original_that_was_changed_is_noticed() -> None:
    model = ToyModel()
    held = model.body.layers[0].down.weight.detach()
    op = operated(model, {"role": r"mlp\.down", "adapter": "full"})
    op.merge()
    held.view(torch.int32)[0, 0] ^= 1
    with unchanged(model), pytest.raises(DriftError, match="a kept original was changed"):
        op.unmerge()
    held.view(torch.int32)[0, 0] ^= 1
    op.undo()


def test_a_large_weight_is_summed_in_the_background_and_still_noticed() -> None:
    model = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 1024))
    op = operated(model, {"target": ".*", "adapter": "lora", "rank": 1})
    op.body.check()  # waits for the sums
    op.merge()
    op.unmerge()
    model[1].weight.data[1023, 1023] += 1
    with pytest.raises(DriftError, match=r"1\.weight have changed"):
        op.undo()
    model[1].weight.data[1023, 1023] -= 1
