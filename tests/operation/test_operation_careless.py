"""Adapter types that write where they must not, or return what they must not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import pytest
import torch

from surgery import Adapter, AdapterType, Options, ReplacementAdapter, Rule, Site, Spec, operate, plan
from surgery.errors import DriftError, PluginError
from surgery.testing import ToyModel, assert_same_state, check_adapter, model_state, toy_registry


class _Careless(Adapter):
    fault = ""

    def __init__(self, site: Site, value: torch.Tensor) -> None:
        super().__init__(site)
        self.value = torch.nn.Parameter(value)

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> Any:
        if self.fault == "writes":
            with torch.no_grad():
                return weight.mul_(1.5)
        if self.fault == "writes past autograd":
            weight.data.mul_(1.5)
        if self.fault == "raises":
            raise ValueError("no")
        if self.fault == "memory":
            raise torch.OutOfMemoryError("full")
        if self.fault == "scales":
            return weight * (1 + self.value.to(weight.dtype))
        if self.fault == "nothing":
            return None
        if self.fault == "shape":
            return weight[:1]
        return weight + self.value.to(weight.dtype)


class _Commuting(_Careless):
    adds = True


class _Active(_Careless):
    activates = True

    @classmethod
    def activate(cls, group: Sequence[Self], inputs: torch.Tensor, output: torch.Tensor) -> Any:
        if group[0].fault == "activate raises":
            raise ValueError("no")
        return None if group[0].fault == "activate nothing" else output[..., :1]


class _Inactive(_Careless):
    activates = True


class _CarelessType(AdapterType[Options]):
    name = "careless"
    summary = "writes where it must not"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def claims(self, site: Site) -> bool:
        return site.is_matrix

    def parameters(self, site: Site, options: Options) -> int:
        return site.size

    def build(
        self, site: Site, options: Options, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        if self.fault == "build":
            pristine[site.parameter].mul_(0)
            return ReplacementAdapter(site, pristine[site.parameter])
        made = {"scales": _Commuting, "inactive": _Inactive}.get(self.fault, _Careless)
        made = _Active if self.fault.startswith("activate") else made
        adapter = made(site, torch.zeros(site.fan_out, site.fan_in))
        adapter.fault = self.fault
        return adapter


def _operate(model: ToyModel, fault: str) -> Any:
    registry = toy_registry(_CarelessType(fault))
    rule = Rule(target=r".*\.up", adapter="careless")
    return operate(model, plan(Spec(name="careless", rules=(rule,)), model, registry), registry=registry)


def test_build_gets_copies() -> None:
    model = ToyModel()
    before = model_state(model)
    with _operate(model, "build"):
        assert torch.equal(model(ToyModel.batch()), ToyModel()(ToyModel.batch()))
    assert_same_state(before, model_state(model))


def test_a_fold_that_writes_is_named_at_the_first_forward() -> None:
    op = _operate(model := ToyModel(), "writes")
    with pytest.raises(PluginError, match="fold wrote to the base") as caught, torch.no_grad():
        model(ToyModel.batch())
    whose = "adapter 'careless' (surgery.testing), class _Careless on body.layers.0.up.weight"
    assert caught.value.where == whose
    assert op.names == ("default",)


def test_a_fold_that_writes_is_refused_by_merge_before_the_base_is_touched() -> None:
    model = ToyModel()
    before = model_state(model)
    with _operate(model, "writes") as op, pytest.raises(PluginError, match="fold wrote to its argument"):
        op.merge()
    assert_same_state(before, model_state(model))


@pytest.mark.parametrize(("fault", "got"), [("nothing", "NoneType"), ("shape", r"\[1, 6\]")])
def test_what_fold_returns_is_checked(fault: str, got: str) -> None:
    model = ToyModel()
    with _operate(model, fault), pytest.raises(PluginError, match=rf"of shape \[12, 6\], not {got}"):
        model(ToyModel.batch())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("writes", "writes to its arguments"),
        ("writes past autograd", "writes to its arguments"),
        ("scales", "_Commuting.fold on .* depends on the value so far: `adds` is not true"),
    ],
)
def test_check_adapter_asks_fold_itself(fault: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_CarelessType, "__module__", "__main__")  # a test module imports torch, and may
    with pytest.raises(AssertionError, match=said):
        check_adapter(_CarelessType(fault), dtypes=(torch.float32,))


@pytest.mark.parametrize("fault", ["raises", "activate raises"])
def test_what_raises_in_a_forward_is_named(fault: str) -> None:
    model = ToyModel()
    method = "activate" if fault.startswith("activate") else r"fold\('weight'\)"
    with _operate(model, fault), pytest.raises(PluginError, match=f"{method} failed: ValueError: no") as caught:
        model(ToyModel.batch())
    assert caught.value.where.startswith("adapter 'careless' (surgery.testing), class _")
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_fold_that_raises_in_a_merge_is_named_and_nothing_is_merged() -> None:
    model = ToyModel()
    before = model_state(model)
    with _operate(model, "raises") as op, pytest.raises(PluginError, match=r"fold\('weight'\) failed: ValueError: no"):
        op.merge()
    assert_same_state(before, model_state(model))


def test_memory_that_is_used_up_is_nobodys_fault() -> None:
    model = ToyModel()
    with _operate(model, "memory"), pytest.raises(torch.OutOfMemoryError, match="full"):
        model(ToyModel.batch())


@pytest.mark.parametrize(("fault", "got"), [("activate nothing", "NoneType"), ("activate shape", r"\[2, 5, 1\]")])
def test_what_activate_returns_is_checked(fault: str, got: str) -> None:
    model = ToyModel()
    with _operate(model, fault), pytest.raises(PluginError, match=rf"of shape \[2, 5, 12\], not {got}"):
        model(ToyModel.batch())


def test_activates_without_activate_is_refused_at_once() -> None:
    with pytest.raises(PluginError, match="_Inactive sets `activates` and does not implement `activate`"):
        _operate(ToyModel(), "inactive")


def test_drift_says_that_a_fold_may_have_written() -> None:
    op = _operate(model := ToyModel(), "writes past autograd")
    model(ToyModel.batch())
    with pytest.raises(DriftError, match=r"the bits .* of body.layers.0.up.weight have changed") as caught:
        op.undo()
    suspect = "an adapter's fold may have written to it: adapter 'careless' (surgery.testing), class _Careless"
    assert caught.value.hint.endswith(suspect)
