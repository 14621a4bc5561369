"""Parts of fused weights: found by role, adapted alone, and compared with a forward that is written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from surgery import Rule, Site, Spec, load_registry, operate, plan, sites

__all__ = ["assert_near", "convolved", "moved_by_lora", "parts_of", "record", "rows", "scan"]

REGISTRY = load_registry()


def parts_of(model: nn.Module, path: str, layer: int = 0) -> dict[str, Site]:
    """Parts of the weight of `layer`'s module `path`, by role."""
    found = (site for site in sites(model, REGISTRY) if site.layer == layer and site.path.endswith(path))
    return {site.role: site for site in found if site.slice is not None}


def rows(model: nn.Module, site: Site) -> torch.Tensor:
    """The site's rows of its weight (or what its part is of another axis), copied."""
    whole = model.get_parameter(site.name).detach()
    return whole.index_select(site.slice.axis, torch.tensor(site.slice.indices())) if site.slice else whole.clone()


def _rows_of(model: nn.Module, site: Site) -> list[int]:
    return list(site.slice.indices()) if site.slice else list(range(len(model.get_parameter(site.name))))


def moved_by_lora(model: nn.Module, site: Site, call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Adapt the site alone; return its merged rows and the live output, having checked that nothing else moved."""
    before = model.get_parameter(site.name).detach().clone()
    rule = Rule(role=site.role.replace(".", r"\."), target=site.path.replace(".", r"\."), adapter="lora", rank=2, expect=1,
                allow_oversized=True)  # fmt: skip
    with operate(model, plan(Spec(name="x", rules=[rule]), model, REGISTRY), registry=REGISTRY) as op:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, tensor in sorted(op.trainable().items()):
                tensor.add_(torch.randn(tensor.shape, generator=generator))
        live = call().detach()
        op.merge()
        after = model.get_parameter(site.name).detach().clone()
    inside = _rows_of(model, site)
    outside = [row for row in range(len(before)) if row not in inside]
    assert torch.equal(after[outside], before[outside])
    assert not torch.equal(after[inside], before[inside])
    return after[inside], live


def record(module: nn.Module) -> list[tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]]:
    """Remember what `module` is called with and what it returns."""
    calls: list[Any] = []
    module.register_forward_hook(lambda _, args, kwargs, out: calls.append((args, kwargs, out)), with_kwargs=True)
    return calls


def assert_near(found: torch.Tensor, expected: torch.Tensor, effect: torch.Tensor) -> None:
    """Rotations and scans of transformers pass through float32 even in a model of float64."""
    size = float(effect.abs().max())
    assert size > 1e-4
    assert (found - expected).abs().max() < max(1e-3 * size, 1e-5)


def scan(x: torch.Tensor, step: torch.Tensor, decay: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """h' = exp(step * decay) h + step * B x; y = C h. x, step: (batch, length, channels); b, c: (..., channels, state)."""
    state, out = torch.zeros_like(b[:, 0] * x[:, 0, :, None]), []
    for t in range(x.shape[1]):
        state = torch.exp(step[:, t, :, None] * decay) * state + (step[:, t] * x[:, t])[..., None] * b[:, t]
        out.append((state * c[:, t]).sum(-1))
    return torch.stack(out, dim=1)


def convolved(mixer: Any, x: torch.Tensor) -> torch.Tensor:
    return F.silu(mixer.conv1d(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
