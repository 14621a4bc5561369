"""Experts under adapters: products of small factors give what a folded weight gives, and no weight is folded."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import build
from operating import LORA, REGISTRY, move, operated, planned
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from surgery import Adapter, AdapterType, Factors, Options, Site, operate
from surgery.errors import PluginError, StateError
from surgery.operation import host
from surgery.operation.factored import FactoredWeight
from surgery.registry import Provenance, Registered, Registry
from surgery.testing import ToyModel, assert_same_state, model_state

MODELS = ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM",
          "GptOssForCausalLM", "JambaForCausalLM")  # fmt: skip
WIDE = {"hidden_size": 16, "intermediate_size": 24}
"""Grouped products know no float64, and want rows of whole 16 bytes."""
WAYS = ("eager", "batched_mm", "grouped_mm")
EXPERTS = {"role": r"moe\.experts\..*", "target": r".*_proj", **LORA}


@contextmanager
def folding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block adapters on experts are folded, as on any host whose forward nobody knows."""
    with monkeypatch.context() as patch:
        patch.setattr(host, "factored_chain", lambda *_: None)
        yield


@contextmanager
def never_folding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(parameter: str, base: torch.Tensor, chain: Any) -> torch.Tensor:
        assert base.dim() < 3, f"{parameter} was folded"
        return original(parameter, base, chain)

    original = host.fold_chain
    with monkeypatch.context() as patch:
        patch.setattr(host, "fold_chain", refuse)
        yield


def experts_of(model: nn.Module) -> nn.Module:
    return next(module for _, module in model.named_modules() if hasattr(module, "gate_up_proj"))


def make(name: str, way: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    wide = {"moe_intermediate_size": 24} if name.startswith(("Qwen", "Deepseek")) else {}
    model, _ = build(name, **({**WIDE, **wide} if way == "grouped_mm" else {}))
    model.set_experts_implementation(way)
    return model.to(dtype)


def tokens(module: nn.Module, dtype: torch.dtype, count: int = 11) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, each token's two experts, and their weights. The last expert gets no token."""
    generator = torch.Generator().manual_seed(5)
    width = module.down_proj.shape[2 if module.is_transposed else 1]
    hidden = torch.randn(count, width, generator=generator).to(dtype).requires_grad_()
    chosen = torch.stack([torch.randperm(3, generator=generator)[:2] for _ in range(count)])
    return hidden, chosen, torch.rand(count, 2, generator=generator).to(dtype)


def run(module: nn.Module, op: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Output, and the gradients of the inputs and of every trainable tensor, of the first layer's experts."""
    hidden, chosen, weights = tokens(module, dtype)
    own = {key: value for key, value in op.trainable().items() if any(value is p for p in module.parameters())}
    assert own
    output = module(hidden, chosen, weights)
    grads = torch.autograd.grad(output.square().sum(), [hidden, *own.values()])
    return {"output": output.detach(), **dict(zip(["inputs", *own], grads, strict=True))}


def assert_near(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], bound: float) -> None:
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        size = tensor.abs().max()
        assert size > 0, key
        assert (found[key] - tensor).abs().max() <= bound * size, key


def bound_of(dtype: torch.dtype) -> float:
    """A folded weight is rounded once for each number, a product's output twice: a few roundings of the dtype."""
    return 32 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shared", ["separate", "shared"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_the_folded_weight(
    name: str, way: str, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype in (torch.float32, torch.bfloat16) if way == "grouped_mm" else (torch.float64, torch.float32):
        model = make(name, way, dtype)
        module = experts_of(model)
        with operated(model, {**EXPERTS, "experts": shared}) as op:
            with never_folding(monkeypatch):
                live = run(module, op, dtype)
            with folding(monkeypatch):
                folded = run(module, op, dtype)
            assert_near(live, folded, bound_of(dtype))
            op.merge()
            with torch.no_grad():
                merged = module(*tokens(module, dtype))
            assert_near({"output": merged}, {"output": live["output"]}, bound_of(dtype))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM"])
@pytest.mark.parametrize("part", ["gate", "up", "down", "(gate|down)"])
def test_parts_and_stacked_adapters(name: str, part: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name, way, torch.float32)
    module = experts_of(model)
    before = model_state(model)
    with operated(model, {**EXPERTS, "role": rf"moe\.experts\.{part}"}) as op:
        op.add(planned(model, {**EXPERTS, "rank": 3, "alpha": 5.0, "experts": "shared"}, seed=2), "second")
        op.add(planned(model, {**EXPERTS, "rank": 5, "role": r"moe\.experts\.(up|down)"}, seed=3), "third")
        move(op, 1)
        with never_folding(monkeypatch):
            live = run(module, op, torch.float32)
        with folding(monkeypatch):
            assert_near(live, run(module, op, torch.float32), bound_of(torch.float32))
        for names in (("second",), ("default", "third"), ("default", "second", "third")):
            op.merge(*names)
            with torch.no_grad():
                output = module(*tokens(module, torch.float32))
            assert_near({"output": output}, {"output": live["output"]}, bound_of(torch.float32))
            op.unmerge()
        assert torch.equal(run(module, op, torch.float32)["output"], live["output"])
    assert_same_state(before, model_state(model), "after three adapters on experts")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_untrained_adapters_give_the_bits_of_the_base(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = make(name, way, dtype)
        module = experts_of(model)
        with torch.no_grad():
            plain = module(*tokens(module, dtype))
        with operate(model, planned(model, EXPERTS), registry=REGISTRY), never_folding(monkeypatch):
            assert torch.equal(module(*tokens(module, dtype)), plain)


class Watch(TorchDispatchMode):
    """Counts tensors of a weight's size that operations return, apart from views."""

    def __init__(self, sizes: Collection[int]) -> None:
        super().__init__()
        self.sizes, self.seen = set(sizes), []
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            is_new = isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given
            if is_new and tensor.numel() in self.sizes:
                self.seen.append((str(func), tuple(tensor.shape)))
        return result


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_no_tensor_of_the_size_of_a_weight_is_made(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name, way, torch.float32)
    module = experts_of(model)
    sizes = {parameter.numel() for parameter in (module.gate_up_proj, module.down_proj)}
    with operated(model, EXPERTS) as op:
        with Watch(sizes) as watch:
            run(module, op, torch.float32)
        assert watch.seen == []
        with folding(monkeypatch), Watch(sizes) as watch:
            run(module, op, torch.float32)
        assert len(watch.seen) > 3, "the watch sees a folded weight"


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_dropout_is_on_the_adapters_input_while_training(way: str) -> None:
    model = make("MixtralForCausalLM", way, torch.float32)
    module = experts_of(model)
    rule = {**EXPERTS, "role": r"moe\.experts\.down", "dropout": 0.5}  # the output is linear in this one
    with operated(model, rule) as op:
        batch = tokens(module, torch.float32)
        still = module(*batch)
        assert torch.equal(module(*batch), still)
        model.train()
        torch.manual_seed(0)
        first = module(*batch)
        assert not torch.equal(first, still)
        assert not torch.equal(module(*batch), first), "two forwards draw two masks"
        torch.manual_seed(0)
        assert torch.equal(module(*batch), first)
        with torch.no_grad():
            mean = torch.stack([module(*batch) for _ in range(600)]).mean(0)
        assert (mean - still).abs().max() < 0.1 * still.abs().max(), "what is left is scaled up"
        with op.disabled():
            plain = module(*batch)
        assert (first - plain).abs().max() > 0, "the base's product sees no mask"


def test_one_mask_serves_the_parts_of_one_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("MixtralForCausalLM", "grouped_mm", torch.float32)
    module, masks = experts_of(model), []
    original = F.dropout
    monkeypatch.setattr(F, "dropout", lambda x, *more: masks.append(x.shape) or original(x, *more))
    with operated(model, {**EXPERTS, "dropout": 0.5}) as op:
        model.train()
        module(*tokens(module, torch.float32))
        assert len(masks) == 2  # gate and up, and down
        op.add(planned(model, {**EXPERTS, "dropout": 0.5}), "second")
        masks.clear()
        module.train()
        module(*tokens(module, torch.float32))
        assert len(masks) == 4, "another adapter has masks of its own"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM"])
def test_autocast(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name, way, torch.float32)
    module = experts_of(model)
    with operated(model, EXPERTS) as op, torch.autocast("cpu", torch.bfloat16):
        with never_folding(monkeypatch):
            live = run(module, op, torch.float32)
        with folding(monkeypatch):
            folded = run(module, op, torch.float32)
        assert live["output"].dtype == folded["output"].dtype
        assert_near(live, folded, 16 * torch.finfo(torch.bfloat16).eps)


def test_copies_state_dict_and_checkpointing_of_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.checkpoint import checkpoint

    model = make("MixtralForCausalLM", "grouped_mm", torch.float32)
    module = experts_of(model)
    keys = list(model.state_dict())
    with operated(model, {**EXPERTS, "dropout": 0.5}) as op:
        assert [key for key in model.state_dict() if "surgery" not in key.split(".")] == keys
        assert all(type(tensor) is torch.Tensor for tensor in model.state_dict().values())
        twin = copy.deepcopy(model)
        batch = tokens(module, torch.float32)
        assert torch.equal(experts_of(twin)(*batch), module(*batch))
        model.train()
        own = [p for p in module.parameters() if p.requires_grad]
        found = []
        for call in (module, lambda *args: checkpoint(module, *args, use_reentrant=False)):
            torch.manual_seed(1)
            found.append(torch.autograd.grad(call(*batch).square().sum(), own))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert op.trainable()


@pytest.mark.parametrize("way", WAYS)
def test_probe_counts_experts(way: str) -> None:
    model, batch = build("MixtralForCausalLM", **WIDE)
    model.set_experts_implementation(way)
    with operated(model, EXPERTS) as op:
        assert len(op.probe(batch["input_ids"])) == 6


# What stands for a weight ---------------------------------------------------------------------------------------------


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
