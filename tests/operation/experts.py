"""Small models with experts, and what their layers compute: for the tests of products and of their stand-in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families import build
from operating import LORA
from torch import nn

from surgery.operation import host

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
