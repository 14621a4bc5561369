"""`factors` says what `fold` does, also for a weight of experts, which the toy model has none of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from surgery.adapter import Adapter, AdapterType
from surgery.adapter.factors import Factors
from surgery.architecture import Site
from surgery.operation import operate
from surgery.operation.fold import canonical_view
from surgery.operation.said import misfit
from surgery.planning import Plan
from surgery.registry import Registry
from surgery.spec import Rule
from surgery.testing.toy import perturb, toy_registry

__all__ = ["check_experts", "check_factors"]


def check_factors(model: nn.Module, decided: Plan, registry: Registry, dtype: torch.dtype) -> None:
    """Where an adapter says factors, they fold like its `fold`."""
    with operate(model, decided, registry=registry) as op, torch.no_grad():
        perturb(op, 8)
        for built in op.body.built["default"]:
            site = built.edit.site
            stored = model.get_submodule(site.path)._parameters[site.parameter]
            assert stored is not None
            _check(built.adapter, site, canonical_view(stored.detach(), site).double())


def check_experts(kind: AdapterType[Any], options: Mapping[str, Any]) -> None:
    """Build the type's adapter for weights of experts, where it claims them, and check `fold` and `factors` there."""
    rule = Rule(role="moe.*", adapter=kind.name, **options)
    chosen = toy_registry(kind).bind(rule, "rules[0]")
    generator = torch.Generator().manual_seed(10)
    for host, shape in (("experts", (3, 6, 4)), ("transposed-experts", (3, 4, 6))):
        site = Site("moe.experts.down", "decoder", 0, "experts", "down_proj", shape, "float32", host)
        if not kind.claims(site):
            continue
        stored = torch.randn(shape, generator=generator)
        pristine = canonical_view(stored, site).clone()
        adapter = kind.build(site, chosen, {"down_proj": pristine.clone()}, torch.Generator().manual_seed(0))
        count = sum(parameter.numel() for parameter in adapter.parameters())
        promised = kind.parameters(site, chosen)
        assert count == promised, f"parameters() promises {promised} on {_experts(site)}, build makes {count}"
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.dtype))
            _check(adapter, site, pristine.double())


def _experts(site: Site) -> str:
    return f"{site.experts} experts of ({site.fan_out}, {site.fan_in}) in a host of kind {site.host!r}"


def _check(adapter: Adapter, site: Site, weight: torch.Tensor) -> None:
    where = f"{type(adapter).__name__} on {_experts(site) if site.experts else site.key}"
    folded = adapter.fold(site.parameter, weight, weight)
    assert folded.shape == weight.shape, (
        f"fold of {where} must return shape {list(weight.shape)}, not {list(folded.shape)}"
    )
    factors: object = adapter.factors(site.parameter)
    if factors is None:
        return
    assert isinstance(factors, Factors), f"factors of {where} must return Factors or None, not {factors!r}"
    wrong = misfit(factors, site)
    assert not wrong, f"factors of {where} do not fit the weight: {wrong}"
    said = factors.fold(weight)
    assert said.shape == folded.shape, f"factors of {where} do not fit the weight"
    # Factors are what a forward computes with, so their own dtype's rounding may show.
    assert torch.allclose(said, folded, rtol=1e-6, atol=1e-6), (
        f"factors of {where} and its fold say different things: let fold return self.factors(parameter).fold(weight)"
    )
