"""Adapters beside others: `adds` is true where it is said, and merging keeps the order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from surgery.operation import operate
from surgery.operation.fold import canonical_view
from surgery.planning import Plan
from surgery.registry import Registry
from surgery.testing.toy import ToyModel, perturb

__all__ = ["check_adds", "check_order"]


def check_adds(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    """Where the class says `adds`, `fold` adds the same whatever the value so far is."""
    with operate(model, decided, registry=registry) as op, torch.no_grad():
        perturb(op, 5)
        for built in op.body.built["default"]:
            if not type(built.adapter).adds:
                continue
            for site in built.edit.sites:
                stored = model.get_submodule(site.path)._parameters[site.parameter]
                assert stored is not None
                base = canonical_view(stored.detach(), site).double()
                added = [built.adapter.fold(site.parameter, weight, base) - weight for weight in (base, base + 1)]
                assert torch.allclose(added[0], added[1], rtol=1e-6, atol=1e-9), (
                    f"{type(built.adapter).__name__}.fold on {site.key} depends on the value so far: `adds` is not true"
                )


def check_order(own: Plan, others: Sequence[Plan], registry: Registry, bound: float) -> None:
    """Each of two adapters merged while the other is live: the outputs stay, also where they do not commute.

    Args:
        own: the checked adapter on a float32 toy model.
        others: those that it is put beside.
        registry: knows all of them.
        bound: how far outputs may move, relative to the largest.
    """
    batch, model = ToyModel.batch(), ToyModel().eval()
    for other in others:
        for first, second in ((own, other), (other, own)):
            with operate(model, first, name="a", registry=registry) as op, torch.no_grad():
                op.add(second, "b")
                perturb(op, 6)
                live = model(batch)
                for merged in (("a",), ("b",), ("a", "b")):
                    op.merge(*merged)
                    error = float((model(batch) - live).abs().max() / live.abs().max().clamp_min(1e-6))
                    op.unmerge(*merged)
                    names = " then ".join(decided.spec.rules[0].adapter for decided in (first, second))
                    assert error <= bound, f"{names}: merging {' and '.join(merged)} moves outputs by {error:.3g}"
