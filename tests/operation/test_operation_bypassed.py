"""Weights that are read without a call of their module: an adapter means the same in training, evaluation and merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operating import LORA, move, operated, unchanged
from torch import nn

from surgery.errors import StateError
from surgery.operation.reads import read_past_modules

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"target": ".*", **LORA, "allow_oversized": True},
    "bias-only": {"target": ".*", "adapter": "bias-only"},
    "full": {"target": ".*", "adapter": "full"},
}
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 6e-2}
"""How far two ways of computing one output may be apart, of the largest: kernels and channels round elsewhere."""


def agree(model: nn.Module, call: Callable[[], torch.Tensor], rule: dict[str, Any], dtype: torch.dtype) -> None:
    """Check that the adapter does the same in every mode, and something in all."""
    plain = call().detach().float()
    model.eval()
    with unchanged(model), operated(model, rule) as op:
        move(op, 1, 0.3)
        seen = {}
        for mode in ("train", "eval"):
            model.train(mode == "train")
            seen[mode] = call().detach()
            with torch.no_grad():
                seen[f"{mode}, no gradients"] = call()
            with torch.inference_mode():
                seen[f"{mode}, inference"] = call().clone()
        op.merge()
        with torch.no_grad():
            seen["merged"] = call()
        first = seen["train"].float()
        scale = max(float(plain.abs().max()), float(first.abs().max()))
        assert float((first - plain).abs().max()) > 2 * BOUNDS[dtype] * scale, "the adapter does nothing to speak of"
        for way, output in seen.items():
            error = float((output.float() - first).abs().max()) / scale
            assert error <= BOUNDS[dtype], f"{way} is {error:.3g} away from training"
        op.unmerge()
        model.eval()


@pytest.mark.parametrize("adapter", ["bias-only", "full", "lora"])
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention(batch_first: bool, need_weights: bool, dtype: torch.dtype, adapter: str) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=batch_first, dtype=dtype).eval()
    inputs = torch.randn(2, 3, 8, dtype=dtype)
    agree(model, lambda: model(inputs, inputs, inputs, need_weights=need_weights)[0], ADAPTERS[adapter], dtype)


@pytest.mark.parametrize("adapter", ["bias-only", "full"])
def test_multihead_attention_of_several_widths(adapter: str) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True).eval()
    queries, keys, values = (torch.randn(2, 3, width) for width in (8, 6, 4))
    agree(model, lambda: model(queries, keys, values)[0], ADAPTERS[adapter], torch.float32)


@pytest.mark.parametrize("adapter", ["bias-only", "full", "lora"])
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_encoder_layer(batch_first: bool, norm_first: bool, dtype: torch.dtype, adapter: str) -> None:
    """In evaluation it hands all its weights to one kernel, and calls no module."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"batch_first": batch_first, "norm_first": norm_first, "dropout": 0.0, "dtype": dtype}
    model = nn.TransformerEncoderLayer(8, 2, 16, **options).eval()
    inputs = torch.randn(2, 3, 8, dtype=dtype)
    agree(model, lambda: model(inputs), ADAPTERS[adapter], dtype)


@pytest.mark.parametrize("target", [r"linear1", r"linear2", r"self_attn\.out_proj", r"self_attn"])
def test_one_weight_of_an_encoder_layer(target: str) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    inputs = torch.randn(2, 3, 8)
    adapter = {"adapter": "full"} if target == "self_attn" else LORA
    agree(model, lambda: model(inputs), {"target": target, **adapter}, torch.float32)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("is_padded", [True, False])
def test_a_stack_of_encoder_layers(is_padded: bool, adapter: str) -> None:
    """Padded batches become nested tensors in evaluation, which only the fast path can take."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2).eval()
    inputs, padding = torch.randn(2, 3, 8), torch.tensor([[False] * 3, [False, False, True]])
    real = ~padding
    chosen = {"src_key_padding_mask": padding} if is_padded else {}
    agree(model, lambda: model(inputs, **chosen)[real], ADAPTERS[adapter], torch.float32)


def test_an_encoder_layer_trains_and_is_probed() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    inputs = torch.randn(2, 3, 8)
    with operated(model, ADAPTERS["lora"]) as op:
        assert set(op.probe(inputs)) == {site.key for site in op.trainable_sites().values()}
        model(inputs).square().sum().backward()
        assert all(parameter.grad is not None for parameter in op.trainable().values())


class Reader(nn.Module):
    """Uses weights in many ways, most of them without a call."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = nn.Linear(4, 4)
        self.inner = nn.Sequential(nn.Linear(4, 4))
        self.stack = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.way)(x)


def _reader(way: Callable[[Any, torch.Tensor], torch.Tensor]) -> nn.Module:
    return type("Reader", (Reader,), {"forward": way})("")


def attribute(module: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, module.first.weight, module.first.bias)


def local_name(self: Any, x: torch.Tensor) -> torch.Tensor:
    layer = self.first
    return F.linear(x, layer.weight)


def local_name_used_again(self: Any, x: torch.Tensor) -> torch.Tensor:
    layer = self.inner
    x = layer(x)
    layer = self.first
    return F.linear(x, layer.weight)


def child_of_a_child(self: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, self.inner[0].weight)


def in_a_loop(self: Any, x: torch.Tensor) -> torch.Tensor:
    for layer in self.stack:
        x = x @ layer.weight.t()
    return x


def by_an_index(self: Any, x: torch.Tensor) -> torch.Tensor:
    for index in range(2):
        x = F.linear(x, self.stack[index].weight)
    return x


def in_a_closure(self: Any, x: torch.Tensor) -> torch.Tensor:
    def inner(y: torch.Tensor) -> torch.Tensor:
        return F.linear(y, self.first.weight)

    return inner(x)


def both_ways(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.first(x) if torch.is_grad_enabled() else F.linear(x, self.first.weight, self.first.bias)


READERS = {
    attribute: ["first"], local_name: ["first"], local_name_used_again: ["first"], child_of_a_child: [r"inner\.0"],
    in_a_closure: ["first"],
    in_a_loop: [r"stack\.0", r"stack\.1"], by_an_index: [r"stack\.0", r"stack\.1"], both_ways: ["first"],
}  # fmt: skip


@pytest.mark.parametrize("way", list(READERS), ids=lambda way: way.__name__)
def test_a_weight_that_a_forward_names_is_folded(way: Any) -> None:
    torch.manual_seed(0)
    model, inputs = _reader(way), torch.randn(3, 4)
    agree(model, lambda: model(inputs), {"target": "|".join(READERS[way]), **LORA}, torch.float32)


def test_asking_a_weight_for_its_dtype_costs_nothing() -> None:
    """T5 asks for one in each forward; its linear maps keep their cheap way of acting on the output."""

    def asks(self: Any, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.first.weight, torch.Tensor) and x.dtype != self.first.weight.dtype:
            x = x.to(self.first.weight.dtype)
        return self.first(x.to(self.stack[0].weight.device))

    model = _reader(asks)
    assert read_past_modules(dict(model.named_modules())) == frozenset()
    with operated(model, {"target": "first", **LORA}) as op:
        assert not any(member.folds for slot in op.body.slots.values() for member in slot.members)


def test_what_no_code_shows_is_told_by_a_probe() -> None:
    """The rule for everything else: a module handed to a function is not followed."""

    def handed_on(self: Any, x: torch.Tensor) -> torch.Tensor:
        return in_a_function(self.first, x)

    model = _reader(handed_on)
    with operated(model, {"target": "first", **LORA}) as op:
        with unchanged(model), pytest.raises(StateError, match="never used in a forward pass"):
            op.probe(torch.randn(3, 4))
    with operated(model, {"target": r"first\.weight", "adapter": "full"}) as op:  # what folds is right anywhere
        assert op.probe(torch.randn(3, 4)) == {"first.weight": 1}


def in_a_function(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, layer.weight)


def test_a_forward_that_is_put_on_a_class_later_is_seen() -> None:
    torch.manual_seed(0)
    model, inputs = _reader(lambda self, x: self.first(x)), torch.randn(3, 4)
    operated(model, {"target": "first", **LORA}).undo()
    type(model).forward = attribute  # type: ignore[method-assign]
    agree(model, lambda: model(inputs), {"target": "first", **LORA}, torch.float32)
