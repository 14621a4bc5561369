"""merge then unmerge is the identity on bits: every registered adapter, dtype and kind of host, any base bits at all."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from surgery import Rule, Spec, SurgeryError, load_registry, operate, plan
from surgery.operation.bits import same_bits
from surgery.testing import ToyModel, assert_same_state, model_state, toy_registry
from surgery.testing.strategies import DTYPES, filled_toy_models, tensors

REGISTRY = load_registry()
ADAPTERS = sorted(REGISTRY.adapters)
HOSTS = {
    "linear": r".*\.(output|up|down)",
    "conv1d": r".*\.fused",
    "embedding": r"body\.embedding|head",
    "norm": r".*\.norm",
}


def _plan(adapter: str, target: str, model: ToyModel):
    kind = REGISTRY.adapter(adapter)
    rule = Rule(target=target, adapter=adapter, allow_oversized=True, tied="share", **kind.defaults())
    registry = toy_registry(*(REGISTRY.adapter(name) for name in ADAPTERS))
    return plan(Spec(name="round-trip", rules=(rule,)), model, registry), registry


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("host", sorted(HOSTS))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_merge_unmerge_gives_back_every_bit(adapter: str, host: str, data: st.DataObject) -> None:
    model = data.draw(filled_toy_models())
    claims = any(REGISTRY.adapter(adapter).claims(site) for site in _sites(model) if _matches(HOSTS[host], site.path))
    if not claims:
        with pytest.raises(SurgeryError):
            _plan(adapter, HOSTS[host], model)
        return
    decided, registry = _plan(adapter, HOSTS[host], model)
    before = model_state(model)
    with operate(model, decided, registry=registry) as op:
        attached = model_state(model)
        seed = data.draw(st.integers(0, 2**16))
        scale = 10.0 ** data.draw(st.integers(-6, 3))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in sorted(op.trainable().items()):
                fresh = torch.randn(parameter.shape, generator=generator) * scale
                parameter.copy_(torch.nan_to_num(fresh.to(parameter.dtype), posinf=1.0, neginf=-1.0))
        adapted = model_state(model)
        try:
            op.merge()
        except SurgeryError as error:  # overflow is refused, and refused whole
            assert "NaN or inf" in error.what
            assert_same_state(adapted, model_state(model), "by a refused merge")
        else:
            op.unmerge()
            assert_same_state(adapted, model_state(model), "by merge and unmerge")
        assert attached.identities == model_state(model).identities
    assert_same_state(before, model_state(model), "by the whole operation")


def _sites(model: ToyModel):
    from surgery import sites

    return sites(model, toy_registry())


def _matches(pattern: str, path: str) -> bool:
    from surgery.spec import compile_pattern

    return compile_pattern(pattern).fullmatch(path)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_hundred_cycles_drift_by_nothing(adapter: str, dtype: torch.dtype) -> None:
    model = ToyModel(dtype=dtype)
    decided, registry = _plan(adapter, ".*", model)
    before = model_state(model)
    with operate(model, decided, registry=registry) as op:
        with torch.no_grad():
            for index, (_, parameter) in enumerate(sorted(op.trainable().items())):
                generator = torch.Generator().manual_seed(index)
                parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.3).to(parameter.dtype))
        base = {key: bits for key, bits in model_state(model).bits.items() if key in before.bits}
        op.merge()
        merged = {key: bits for key, bits in model_state(model).bits.items() if key in before.bits}
        differing = 0
        for _ in range(100):
            op.unmerge()
            now = model_state(model).bits
            differing += sum(now[key] != base[key] for key in base)
            op.merge()
            now = model_state(model).bits
            differing += sum(now[key] != merged[key] for key in base)
        assert differing == 0
    assert_same_state(before, model_state(model), "after 100 cycles")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rounding_once_is_the_correct_rounding(dtype: torch.dtype, data: st.DataObject) -> None:
    """Against an oracle in exact arithmetic: of the two neighbours the nearer wins, and a tie goes to the even one."""
    from fractions import Fraction

    from surgery.operation.bits import round_once

    mantissa = data.draw(st.integers(-(2**53), 2**53))
    exponent = data.draw(st.integers(-80, -20))
    value = float(Fraction(mantissa) * Fraction(2) ** exponent)
    got = round_once(torch.tensor([value], dtype=torch.float64), dtype)
    assert same_bits(got, _nearest_even(value, dtype)).all()


def _nearest_even(value: float, dtype: torch.dtype) -> torch.Tensor:
    from fractions import Fraction

    start = torch.tensor([value], dtype=torch.float64).to(dtype).view(torch.int16)
    candidates = []
    for offset in (-1, 0, 1):
        magnitude = (int(start) & 0x7FFF) + offset
        if magnitude < 0:
            continue
        pattern = magnitude | (int(start) & 0x8000)
        bits = torch.tensor([pattern - 0x10000 if pattern >= 0x8000 else pattern], dtype=torch.int16)
        number = float(bits.view(dtype).double())
        if abs(number) == float("inf"):  # it stands where the next binade would begin
            number = math.copysign(2.0**16 if dtype == torch.float16 else 2.0**128, number)
        if number == number:
            candidates.append((abs(Fraction(number) - Fraction(value)), pattern & 1, bits))
    return min(candidates, key=lambda item: item[:2])[2].view(dtype)


@settings(max_examples=40, deadline=None)
@given(tensors((3, 4), torch.bfloat16))
@example(torch.tensor([[-0.0, float("nan"), float("inf"), 1e-40]] * 3, dtype=torch.bfloat16))
def test_a_zero_update_keeps_the_very_bits(weight: torch.Tensor) -> None:
    """An untrained adapter (B = 0) must not turn -0 into +0 nor quieten a NaN, merged or not."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False, dtype=torch.bfloat16))
    model[0].weight.data.view(torch.int16).copy_(weight.view(torch.int16))
    registry = toy_registry(*(REGISTRY.adapter(name) for name in ADAPTERS))
    rule = Rule(target="0", adapter="lora", rank=1)
    with operate(model, plan(Spec(name="zero", rules=(rule,)), model, registry), registry=registry) as op:
        op.merge()
        assert same_bits(model[0].weight, weight).all()
