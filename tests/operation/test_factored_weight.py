"""The stand-in for an experts' weight, and adapters that say their factors: products wherever they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from operating import REGISTRY, move, operated, planned
from torch import nn
from torch.nn import functional as F

from experts import (
    EXPERTS,
    WAYS,
    assert_near,
    bound_of,
    experts_of,
    folding,
    make,
    never_folding,
    run,
    tokens,
)
from surgery import Adapter, AdapterType, Factors, Options, Site, operate
from surgery.errors import PluginError, StateError
from surgery.operation.factored import FactoredWeight
from surgery.registry import Provenance, Registered, Registry
from surgery.testing import ToyModel


@pytest.fixture
def weight() -> Iterator[tuple[FactoredWeight, torch.Tensor]]:
    """The stand-in for gpt-oss' down_proj (experts, in, out), and the folded weight."""
    model = make("GptOssForCausalLM", "eager", torch.float64)
    with operated(model, EXPERTS):
        found = experts_of(model).down_proj
        assert type(found) is FactoredWeight
        yield found, found.clone()


def test_it_is_a_tensor_like_the_folded_one(weight: tuple[FactoredWeight, torch.Tensor]) -> None:
    found, dense = weight
    assert type(dense) is torch.Tensor
    assert isinstance(found, torch.Tensor)
    for view in (lambda w: w, lambda w: w[1], lambda w: w.mT, lambda w: w[torch.tensor([3, 1, 1])].transpose(1, 2),
                 lambda w: w[torch.tensor(2)].T, lambda w: w[0].t(), lambda w: w.swapaxes(-1, -2)):  # fmt: skip
        one, other = view(found), view(dense)
        assert type(one) is FactoredWeight
        assert (one.shape, one.dtype, one.device, one.dim(), one.size(-1), len(one), one.numel()) == (
            other.shape, other.dtype, other.device, other.dim(), other.size(-1), len(other), other.numel()
        )  # fmt: skip
        assert torch.equal(one.detach(), other.detach())
        assert one.requires_grad
        with torch.no_grad():
            assert not one.requires_grad
            assert not one.detach().requires_grad
            assert not (one + 1).requires_grad
        fresh = found.mT.mT if view(found) is found else view(found)
        with torch.no_grad():
            assert not (fresh + 1).requires_grad
        assert (fresh + 1).requires_grad, "what was folded without gradients is not used with them"
    assert repr(found) == repr(found.dense())


def test_any_other_use_folds(weight: tuple[FactoredWeight, torch.Tensor]) -> None:
    found, dense = weight
    x = torch.randn(5, dense.shape[1], dtype=torch.float64)
    for act in (lambda w: w + 1, lambda w: w[0, 1], lambda w: w[:, :3], lambda w: w[1:], lambda w: w.sum(), list,
                lambda w: torch.einsum("ni,eio->eno", x, w), lambda w: w[None], lambda w: torch.stack([w, w]),
                lambda w: w[torch.tensor([True, False, True, True])], lambda w: w.transpose(0, 1),
                lambda w: w[torch.tensor([0, 1])][1], lambda w: w.tolist(), lambda w: w * dense,
                lambda w: w.chunk(2, -1), lambda w: w.view(4, -1), lambda w: w.matmul(torch.ones(w.shape[2], dtype=w.dtype)),
                lambda w: torch.mm(w[0], w[1].T), lambda w: w[0] @ w[1].T, lambda w: x @ w):  # fmt: skip
        one, other = act(found), act(dense)
        assert str(one) == str(other)
        assert not isinstance(one, FactoredWeight)
    total = (found * 2).sum()
    assert total.requires_grad


def test_products_by_every_spelling(weight: tuple[FactoredWeight, torch.Tensor]) -> None:
    found, dense = weight
    experts, wide, narrow = dense.shape
    x, y = torch.randn(5, wide, dtype=torch.float64), torch.randn(experts, 5, wide, dtype=torch.float64)
    bias = torch.randn(narrow, dtype=torch.float64)
    index = torch.tensor([2, 0, 2])
    for act in (lambda w: F.linear(x, w[1].T), lambda w: F.linear(x, w[1].T, bias), lambda w: x @ w[1], lambda w: x[0] @ w[2],
                lambda w: torch.mm(x, w[0]), lambda w: x.matmul(w[3]), lambda w: torch.bmm(y, w), lambda w: y @ w,
                lambda w: torch.bmm(w.mT, y.mT), lambda w: w.mT @ y.mT, lambda w: torch.bmm(y[:3], w[index]),
                lambda w: torch.bmm(w[index].mT, y[:3].mT), lambda w: y @ w[1], lambda w: F.linear(y, w.mT[1])):  # fmt: skip
        one, other = act(found), act(dense)
        assert type(one) is torch.Tensor
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-12


def test_what_goes_past_torch_function_keeps_gradients_or_says_so(weight: tuple[FactoredWeight, torch.Tensor]) -> None:
    found, dense = weight
    with torch._C.DisableTorchFunctionSubclass():
        with torch.no_grad():
            assert torch.equal(torch.add(found, 1), dense + 1)
        with pytest.raises(StateError, match="gradients would be lost"):
            torch.add(found, 1)


# A stranger's adapter -------------------------------------------------------------------------------------------------


class Stranger(Adapter):
    """Rows, columns and an update at once, each for every expert or for all of them."""

    def __init__(self, site: Site, draw: torch.Generator, kept: torch.dtype) -> None:
        super().__init__(site)
        first = (site.experts,) if site.layer else ()
        self.up = nn.Parameter(torch.randn(*first, site.fan_out, 3, generator=draw, dtype=kept))
        self.down = nn.Parameter(torch.randn(*first, 3, site.fan_in, generator=draw, dtype=kept) / 9)
        self.r = nn.Parameter(1 + torch.randn(*first, site.fan_out, generator=draw, dtype=kept) / 9)
        self.c = (
            None if site.slice else nn.Parameter(1 + torch.randn(*first, site.fan_in, generator=draw, dtype=kept) / 9)
        )

    def factors(self, parameter: str) -> Factors:
        return Factors(self.down, self.up, scale=0.5, rows=self.r, columns=self.c)

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return self.factors(parameter).fold(weight)


class StrangerType(AdapterType[Options]):
    name = "stranger"
    summary = "for this test"
    made: type[Adapter] = Stranger

    def claims(self, site: Site) -> bool:
        return site.experts > 0

    def parameters(self, site: Site, options: Options) -> int:
        pairs = site.experts if site.layer else 1
        return pairs * (3 * (site.fan_in + site.fan_out) + site.fan_out + (0 if site.slice else site.fan_in))

    def build(self, site: Site, options: Options, pristine: Any, generator: torch.Generator) -> Adapter:
        return self.made(site, generator, getattr(torch, self.trainable_dtype(site)))


def registry_with(kind: AdapterType[Any]) -> Registry:
    here = Registered(kind, Provenance("stranger", "tests", ""))
    return Registry({**REGISTRY.adapters, "stranger": here}, REGISTRY.architectures, {}, {}, {})


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM"])
def test_a_strangers_adapter_comes_in_by_the_same_door(
    name: str, way: str, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery import Rule, Spec, plan

    model = make(name, way, torch.float32)
    module = [module for _, module in model.named_modules() if hasattr(module, "gate_up_proj")][layer]
    registry = registry_with(StrangerType())
    rule = Rule(role=r"moe\.experts\..*", adapter="stranger")
    with operate(model, plan(Spec(name="x", rules=[rule]), model, registry), registry=registry) as op:
        op.add(planned(model, EXPERTS), "a-lora")  # comes before the factors in the order
        move(op, 3)
        with never_folding(monkeypatch):
            live = run(module, op, torch.float32)
        with folding(monkeypatch):
            assert_near(live, run(module, op, torch.float32), bound_of(torch.float32))
        op.merge()
        with torch.no_grad():
            assert_near({"output": module(*tokens(module, torch.float32))}, {"output": live["output"]}, 1e-5)


@pytest.mark.parametrize("part", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "update"), [(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1)]
)
def test_factors_serve_linear_maps_and_their_parts(
    rows: int, columns: int, update: int, part: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases, which are no part of the weight, are not scaled; an input that parts share is not changed for all."""
    from surgery import Rule, Spec, plan

    class Some(Stranger):
        def factors(self, parameter: str) -> Factors:
            return Factors(
                down=self.down if update else None,
                up=self.up if update else None,
                rows=self.r if rows else None,
                columns=self.c if columns else None,
            )

    class SomeType(StrangerType):
        made = Some

        def claims(self, site: Site) -> bool:
            return site.is_matrix

    def made(site: Site, draw: torch.Generator, kept: torch.dtype) -> Adapter:
        adapter = Some(replace(site, slice=None, layer=0), draw, kept)
        adapter.site = site
        return adapter

    monkeypatch.setattr(SomeType, "made", staticmethod(made))
    monkeypatch.setattr(
        SomeType, "parameters", lambda _, site, options: 3 * (site.fan_in + site.fan_out) + site.fan_out + site.fan_in
    )
    model = ToyModel(dtype=torch.float64).eval()
    registry = registry_with(SomeType())
    registry = replace(
        registry, architectures={**registry.architectures, "surgery-toy": REGISTRY.architecture("surgery-toy")}
    )
    pattern = r"attention\.(key|value)" if part else r"mlp\..*|attention\.output"
    rule = Rule(role=pattern, adapter="stranger", allow_oversized=True)
    with operate(model, plan(Spec(name="x", rules=[rule]), model, registry), registry=registry) as op:
        live = model(ToyModel.batch())
        with folding(monkeypatch):
            folded = model(ToyModel.batch())
        assert (live - folded).abs().max() < 1e-11
        op.merge()
        assert (model(ToyModel.batch()) - live).abs().max() < 1e-11


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda a: Factors(a.up, a.down), "do not fit"),
        (lambda a: Factors(up=a.up), "do not fit"),
        (lambda a: Factors(rows=a.up), "do not fit"),
        (lambda a: (a.down, a.up), "must return Factors or None, not tuple"),
        (lambda a: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_factors_that_do_not_fit_are_the_plugins_mistake(wrong: Any, words: str) -> None:
    from surgery import Rule, Spec, plan

    class Wrong(Stranger):
        def factors(self, parameter: str) -> Factors:
            return wrong(self)

    class WrongType(StrangerType):
        made = Wrong

    model = make("MixtralForCausalLM", "eager", torch.float32)
    module, registry = experts_of(model), registry_with(WrongType())
    rule = Rule(role=r"moe\.experts\.down", adapter="stranger")
    with operate(model, plan(Spec(name="x", rules=[rule]), model, registry), registry=registry):
        with pytest.raises(PluginError, match=words) as caught:
            module(*tokens(module, torch.float32))
        assert "stranger" in str(caught.value)


def test_an_adapter_without_factors_is_folded() -> None:
    model = make("MixtralForCausalLM", "eager", torch.float64)
    module = experts_of(model)
    with operated(model, {"role": r"moe\.experts\..*", "adapter": "full"}) as op:
        assert type(module.down_proj) is nn.Parameter
        op.add(planned(model, EXPERTS), "lora")
        assert type(module.down_proj) is torch.Tensor


def test_compiled_experts_compute_the_same() -> None:
    model = make("MixtralForCausalLM", "batched_mm", torch.float32)
    module = experts_of(model)
    with operated(model, EXPERTS) as op:
        live = run(module, op, torch.float32)
        batch = tokens(module, torch.float32)
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        output = compiled(*batch)
        assert_near({"output": output.detach()}, {"output": live["output"]}, 1e-5)
        torch._dynamo.reset()


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_written_in_place_is_seen_by_the_product(
    weight: tuple[FactoredWeight, torch.Tensor], inference: bool
) -> None:
    found, dense = weight
    x = torch.randn(3, 2, dense.shape[1], dtype=torch.float64)
    chosen = torch.tensor([2, 0, 2])

    def scaled(w: torch.Tensor) -> None:
        w.mul_(2.0)

    def blanked(w: torch.Tensor) -> None:
        w[:, 0] = 0

    def filled(w: torch.Tensor) -> None:
        w[:, 1].fill_(3.0)

    with torch.inference_mode(inference):
        for write in (scaled, blanked, filled):
            one, other = found[chosen], dense.detach()[chosen]  # picked by a tensor: a copy, which is theirs to write
            write(one)
            write(other)
            assert torch.allclose(torch.bmm(x, one), torch.bmm(x, other))


def test_an_index_may_change_after_it_was_used(weight: tuple[FactoredWeight, torch.Tensor]) -> None:
    found, dense = weight
    x, index = torch.randn(3, 2, dense.shape[1], dtype=torch.float64), torch.tensor([2, 0, 2])
    one, other = found[index], dense[index]
    index.zero_()
    assert torch.allclose(torch.bmm(x, one), torch.bmm(x, other))


def test_arguments_by_every_name(weight: tuple[FactoredWeight, torch.Tensor]) -> None:
    found, dense = weight
    x = torch.randn(len(dense), 2, dense.shape[1], dtype=torch.float64)
    for act in (lambda w: w.transpose(dim0=1, dim1=2), lambda w: torch.transpose(input=w[0], dim0=0, dim1=1),
                lambda w: torch.mm(x[0], mat2=w[1]), lambda w: torch.bmm(input=x, mat2=w),
                lambda w: torch.bmm(x, w.detach(), out=torch.empty_like(x[..., :1] * w[:, :1]))):  # fmt: skip
        assert torch.allclose(act(found) + 0, act(dense) + 0)
