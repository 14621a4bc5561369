"""Experts under adapters: products of small factors give what a folded weight gives, and no weight is folded."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import pytest
import torch
from families import build
from operating import REGISTRY, move, operated, planned
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from experts import (
    EXPERTS,
    MODELS,
    WAYS,
    WIDE,
    assert_near,
    bound_of,
    experts_of,
    folding,
    make,
    never_folding,
    run,
    tokens,
)
from surgery import operate
from surgery.testing import assert_same_state, model_state


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
