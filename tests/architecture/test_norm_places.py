"""`norm.X.pre` feeds X and `norm.X.post` normalises what X made: seen in a forward of every family."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from families import FAMILIES, Family, build
from torch import nn

from surgery import load_registry, sites

REGISTRY = load_registry()
ENTRANCES = {
    "attention": ("attention.query",),
    "cross_attention": ("cross_attention.query",),
    "mlp": ("mlp.gate", "mlp.up"),
}
EXITS = {"attention": "attention.output", "cross_attention": "cross_attention.output", "mlp": "mlp.down"}

BETWEEN = ("jetmoe", "rwkv", "led", "longformer", "luke", "mobilebert", "prophetnet")
"""Types with something between a norm and attention: tokens are routed, mixed with the one before, turned to (length,
batch, width), joined with entities, put out stream by stream, or the residual is not what the query is made of."""

Calls = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module path -> what its first call was given and what it returned, flattened."""


def _first_calls(model: nn.Module, batch: dict[str, Any], paths: set[str]) -> Calls:
    calls: Calls = {}

    def record(path: str) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(output, torch.Tensor):
                calls.setdefault(path, (args[0].flatten().clone(), output.flatten().clone()))

        model.get_submodule(path).register_forward_hook(hook)

    for path in paths:
        record(path)
    model(**batch)
    return calls


def _check(block: str, paths: dict[str, str], calls: Calls) -> None:
    def call(role: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [calls[paths[role]]] if paths.get(role) in calls else []

    is_latent = block == "attention" and "attention.query_down" in paths  # the query is made of a latent there
    entrances = ("attention.query_down", "attention.kv_down") if is_latent else ENTRANCES[block]
    entered = [given for role in entrances for given, _ in call(role)]
    for _, fed in call(f"norm.{block}.pre"):
        for given in entered:
            assert torch.equal(fed, given), f"norm.{block}.pre does not feed it"
    for given, _ in call(f"norm.{block}.post"):
        for _, made in call(EXITS[block]):
            # Before it joins the residual, or after: then that is what the block was given.
            possible = [made, *(made + residual for residual in entered)]
            assert any(torch.allclose(given, one, atol=1e-5) for one in possible), f"norm.{block}.post is elsewhere"


@pytest.mark.parametrize("item", [item for item in FAMILIES if item.kind not in BETWEEN], ids=str)
@torch.no_grad()
def test_norms_are_where_their_roles_say(item: Family) -> None:
    model, batch = build(item)
    layers: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for site in sites(model, REGISTRY):
        if site.layer is not None and site.parameter == "weight":  # of a module that is called
            layers[site.stack, site.layer].setdefault(site.role, site.path)
    calls = _first_calls(model, batch, {path for paths in layers.values() for path in paths.values()})
    for paths in layers.values():
        for block in ENTRANCES:
            _check(block, paths, calls)
