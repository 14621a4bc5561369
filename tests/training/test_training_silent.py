"""Adapters that the model never calls are found before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from surgery.errors import TrainingError
from surgery.operation import operate
from surgery.registry import Registry
from surgery.spec import Spec
from surgery.training import prepare
from surgery.training.fit import FitResult, fit

MLP = "transformers.models.bert.modeling_bert.BertIntermediate.forward"


def trained(spec: Spec, registry: Registry, rows: Any) -> FitResult:
    session = prepare(spec, registry, data=rows)
    assert spec.training is not None
    with operate(session.model, session.plan, registry=registry) as operation:
        return fit(session, operation, spec.training, seed=0)


def past(module: Any, states: torch.Tensor) -> Any:
    return module.intermediate_act_fn(F.linear(states, module.dense.weight, module.dense.bias))


def through(module: Any, states: torch.Tensor) -> Any:
    return module.intermediate_act_fn(module.dense(states))


@pytest.mark.parametrize("only_without_gradients", [False, True], ids=["always", "fast path"])
def test_a_silent_site_is_an_error_before_training(
    only_without_gradients: bool, spec_of: Callable[..., Spec], registry: Registry, rows: Any, monkeypatch: Any
) -> None:
    def forward(module: Any, states: torch.Tensor) -> Any:
        fast = not torch.is_grad_enabled() or not only_without_gradients
        return past(module, states) if fast else through(module, states)

    spec = spec_of({"role": r"mlp\.up|attention\.query", "adapter": "lora", "rank": 2})
    assert trained(spec, registry, rows).updates == 6
    monkeypatch.setattr(MLP, forward)
    with pytest.raises(TrainingError) as caught:
        trained(spec, registry, rows)
    assert [(problem.where, "never used in a forward pass" in problem.what) for problem in caught.value.problems] == [
        (f"bert.encoder.layer.{layer}.intermediate.dense.weight", True) for layer in (0, 1)
    ]


def test_a_site_may_wait_for_its_turn(
    spec_of: Callable[..., Spec], registry: Registry, rows: Any, monkeypatch: Any
) -> None:
    """As an expert does, to which no token of the first batch is sent."""
    calls: list[bool] = []

    def forward(module: Any, states: torch.Tensor) -> Any:
        calls.append(True)
        return through(module, states) if len(calls) in (3, 6) or len(calls) > 8 else past(module, states)

    monkeypatch.setattr(MLP, forward)
    spec = spec_of({"role": r"mlp\.up", "adapter": "lora", "rank": 2})
    assert trained(spec, registry, rows).updates == 6
