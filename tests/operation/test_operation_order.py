"""Several adapters that do not commute: what is merged and what is live must not show in the output."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from operating import REGISTRY, move
from torch import nn

from surgery import Operation, Rule, Spec, operate, plan
from surgery.errors import StateError
from surgery.registry import Provenance, Registered, Registry
from surgery.testing.partners import PARTNERS

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora", "rank": 2, "bias": True},
    "bias": {"adapter": "bias-only"},
    "scale": {"adapter": "partner-scaling"},
}
_HERE = Provenance("partners", "tests", "")
ALL = Registry(
    adapters={**REGISTRY.adapters, **{kind.name: Registered(kind, _HERE) for kind in PARTNERS}},
    architectures={},
    models={},
    datasets={},
    tasks={},
)


def _operated(model: nn.Module, kinds: tuple[str, ...], **options: Any) -> Operation:
    plans = [plan(Spec(name=kind, rules=[Rule(target="0", **ADAPTERS[kind])]), model, ALL) for kind in kinds]
    op = operate(model, plans[0], name="a", registry=ALL, **options)
    for name, decided in zip("bc", plans[1:], strict=False):
        op.add(decided, name)
    move(op, scale=0.5)
    return op


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8))


@pytest.mark.parametrize("kinds", list(itertools.product(ADAPTERS, repeat=3)), ids="-".join)
def test_whatever_is_merged_or_disabled_the_output_stays(kinds: tuple[str, ...]) -> None:
    model, x = _model(), torch.randn(3, 8)
    with _operated(model, kinds) as op, torch.no_grad():
        live = model(x)
        subsets = [names for size in (1, 2, 3) for names in itertools.combinations("abc", size)]
        without = {}
        for names in subsets:
            with op.disabled(*names):
                without[names] = model(x)
        for names in subsets:
            op.merge(*names)
            torch.testing.assert_close(model(x), live, rtol=1e-4, atol=1e-5)
            for off, output in without.items():
                with op.disabled(*off):
                    torch.testing.assert_close(model(x), output, rtol=1e-4, atol=1e-5)
            op.unmerge(*names)
            assert torch.equal(model(x), live)


def test_one_that_is_folded_for_its_order_still_trains() -> None:
    model = _model()
    with _operated(model, ("lora", "scale")) as op:
        op.merge("b")
        model(torch.randn(3, 8)).sum().backward()
        assert all(parameter.grad is not None for parameter in op.trainable("a").values())
        assert set(op.probe(torch.randn(3, 8)).values()) == {2}  # its weight and its bias


def test_lora_beside_lora_stays_on_the_output() -> None:
    model = _model()
    with _operated(model, ("lora", "lora")) as op:
        op.merge("b")
        (state,) = op.body.hosts.values()
        assert len(state.activations) == 1
        assert not any(state.overrides.values())
        assert not isinstance(getattr(type(model[0]), "weight", None), property)


def test_removing_what_came_after_brings_the_output_edit_back() -> None:
    model, x = _model(), torch.randn(3, 8)
    with _operated(model, ("lora", "scale")) as op, torch.no_grad():
        with op.disabled("b"):
            alone = model(x)
        op.merge("b")
        op.remove("b")
        assert torch.equal(model(x), alone)


def test_without_originals_in_memory_it_is_refused() -> None:
    with _operated(_model(), ("lora", "scale"), keep="none") as op, pytest.raises(StateError, match="on the fly"):
        op.merge("b", irreversible=True)
