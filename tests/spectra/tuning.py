"""Checkpoints that were tuned: a base, and the same with known changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from families import build
from operating import REGISTRY

from surgery import sites
from surgery.operation.fold import canonical_view

__all__ = ["PLANTED", "base_and_tuned", "canonical", "plant"]

PLANTED = 3
SHARDS = "9KB"


def base_and_tuned(
    folder: Path, family: str, dtype: torch.dtype = torch.float32, **config: Any
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Save a tiny model as `base`, and another whose matrices outside of tables and heads got changes of rank 3 as `tuned`."""
    models = []
    for name in ("base", "tuned"):
        model = build(family, **config)[0].to(dtype).eval()
        if name == "tuned":
            plant(model)
        model.save_pretrained(folder / name, max_shard_size=SHARDS)
        models.append(model)
    return models[0], models[1]


@torch.no_grad()
def plant(model: torch.nn.Module, rank: int = PLANTED, strength: float = 0.3) -> None:
    """Add a change of this rank to every part of every matrix, each expert's included."""
    generator = torch.Generator().manual_seed(9)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for site in sites(model, REGISTRY):
        if not (site.is_matrix or site.experts) or site.role.startswith(("embedding", "head", "moe.router")):
            continue
        whole = torch.zeros_like(parameters[site.name])
        shape = (site.experts or 1, site.fan_out, site.fan_in)
        drawn = torch.randn(*shape[:2], rank, generator=generator) @ torch.randn(
            shape[0], rank, shape[2], generator=generator
        )
        value = strength * (drawn if site.experts else drawn[0])
        value = value.mT if site.is_transposed else value
        index: list[Any] = [slice(None)] * whole.dim()
        if site.slice is not None:
            index[site.slice.axis] = torch.tensor(site.slice.indices())
        whole[tuple(index)] = value.to(whole.dtype)
        parameters[site.name].add_(whole)


def canonical(model: torch.nn.Module, key: str) -> torch.Tensor:
    """A site's matrix or matrices, (fan_out, fan_in), float64."""
    site = next(site for site in sites(model, REGISTRY) if site.key == key)
    return canonical_view(dict(model.named_parameters(remove_duplicate=False))[site.name].detach(), site).double()
