"""Measuring a model's layers on small models built alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeAlias

from torch import nn

from surgery.planning.names import splits, starred
from surgery.planning.probe.conclude import Finding, agreed, roles_of_layer
from surgery.planning.probe.rows import Bench
from surgery.planning.probe.watch import is_linear
from surgery.registry import Twin, Twins

__all__ = ["measure"]

_Layer: TypeAlias = tuple[str, tuple[int, ...]]
"""Path of a list of layers, and a number in it."""


def measure(twins: Twins, wanted: Collection[str] | None = None) -> dict[str, Finding]:
    """Return path -> what a linear map in a layer was measured to be, where that could be told.

    Only layers that have one of the `wanted` maps are measured; None means all. A layer's number is written as a star:
    `model.layers.*.mlp.up_proj`. Of the layers that have a map of one name, the first is measured in one model and the
    last in the next; what they do not agree on is left out.
    """
    roles: list[dict[str, list[str]]] = []
    axes: dict[str, int] = {}
    for count, twin in enumerate(twins.models):
        found: dict[str, list[str]] = {}
        for path, module, of_rows in _roles(twin, wanted, from_the_end=count % 2 == 1):
            found.setdefault(path, of_rows)
            axes[path] = 1 if hasattr(module, "nf") else 0
        roles.append(found)
    settings = [twin.settings for twin in twins.models]
    findings: dict[str, Finding] = {}
    for path in roles[0] if roles else ():
        if all(path in found for found in roles):
            one = agreed(path, axes[path], [found[path] for found in roles], settings, twins.names)
            if one is not None:
                findings[path] = one
    return findings


def _roles(
    twin: Twin, wanted: Collection[str] | None, *, from_the_end: bool
) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """Yield (path with a star, module, role of each row) of one layer for each name that layers have."""
    names = {module: name for name, module in twin.model.named_modules() if is_linear(module)}
    bench = Bench(twin.model, twin.batch, names)
    if not bench.runs:
        return
    layers: dict[_Layer, dict[str, nn.Module]] = {}
    for module, name in names.items():
        layer = _layer_of(name)
        if layer is not None:
            layers.setdefault(layer, {})[name] = module
    experts = {_layer_of(name) for name, parameter in twin.model.named_parameters() if parameter.dim() == 3}
    done: set[str] = set()
    for layer in reversed(layers) if from_the_end else layers:
        inside = {starred(name) for name in layers[layer]}
        if not inside <= done and (wanted is None or inside & set(wanted)):
            found = roles_of_layer(bench, layers[layer], layer in experts)
            for name, roles in found.items():
                yield starred(name), layers[layer][name], roles
            done |= inside


def _layer_of(name: str) -> _Layer | None:
    found = next(splits(name), None)
    return found[:2] if found else None
