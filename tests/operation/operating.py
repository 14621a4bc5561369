"""What the tests of operations share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from surgery import Operation, Plan, Rule, Spec, load_registry, operate, plan
from surgery.registry import Provenance, Registered, Registry
from surgery.testing import TOY, assert_same_state, model_state

__all__ = ["LORA", "REGISTRY", "base_bits", "logits", "move", "operated", "planned", "unchanged"]

_INSTALLED = load_registry()
REGISTRY = Registry(
    adapters=_INSTALLED.adapters,
    architectures={**_INSTALLED.architectures, "surgery-toy": Registered(TOY, Provenance("toy", "tests", ""))},
    models=_INSTALLED.models,
    datasets={},
    tasks={},
)
"""Everything installed, and the toy model's architecture."""

LORA: dict[str, Any] = {"adapter": "lora", "rank": 2}


def planned(model: nn.Module, *rules: dict[str, Any], seed: int = 0) -> Plan:
    """Return the plan of these rules; without any, LoRA on all attention and bias-only on everything else."""
    chosen = rules or ({"role": r"attention\..*", **LORA}, {"role": ".*", "adapter": "bias-only", "tied": "share"})
    return plan(Spec(name="test", seed=seed, rules=[Rule(**rule) for rule in chosen]), model, REGISTRY)


def operated(model: nn.Module, *rules: dict[str, Any], **options: Any) -> Operation:
    """Operate and move every adapter, as training would."""
    op = operate(model, planned(model, *rules), registry=REGISTRY, **options)
    move(op)
    return op


def move(op: Operation, seed: int = 0, scale: float = 0.1, *names: str) -> None:
    """Change every trainable tensor, deterministically."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(op.trainable(*names).items()):
            parameter.add_((torch.randn(parameter.shape, generator=generator) * scale).to(parameter.dtype))


def base_bits(model: nn.Module) -> dict[str, bytes]:
    """Return the bits of what is not surgery's."""
    return {key: bits for key, bits in model_state(model).bits.items() if "surgery" not in key.split(".")}


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the first output."""
    out: torch.Tensor = model(**batch)[0]
    return out


@contextmanager
def unchanged(model: nn.Module, when: str = "") -> Iterator[None]:
    """Within the block everything may happen; after it the model must be as before."""
    before = model_state(model)
    yield
    assert_same_state(before, model_state(model), when)
