"""The contract of architectures, as one function that an author's test calls."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from surgery.architecture import Architecture, Site
from surgery.operation import operate
from surgery.planning import inventory, plan, sites
from surgery.planning.sites import plain_names
from surgery.registry import Provenance, Registered, Registry, load_registry
from surgery.spec import Rule, Spec
from surgery.testing.architecture_checks import BOUND, moved_by_merging, outputs_of
from surgery.testing.spared import spared
from surgery.testing.state import assert_same_state, model_state

__all__ = ["check_architecture"]


def check_architecture(
    architecture: Architecture, model: nn.Module, *args: Any, allow_other: tuple[str, ...] = (), **batch: Any
) -> None:
    """Check an architecture against a tiny live model of its type.

    Every parameter has a role, or none by `Architecture.plain`; slices tile their axis; the meta device tells the same
    sites; a forward uses every site; merging leaves the outputs, up to rounding; merge then unmerge is the identity on
    all of them.

    Args:
        architecture: the data to check.
        model: a small model with `config.model_type` among `architecture.types`, with or without a task head.
        args, batch: what the model is called with.
        allow_other: names of parameters that need not have a role.

    `surgery architecture check` makes these checks and more, for all task heads, without a test.

    Raises:
        AssertionError: what is wrong, with names.
    """
    registry = _registry(architecture)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    assert model_type in architecture.types, f"the model's type is {model_type!r}, not one of {architecture.types}"
    found = sites(model, registry)
    taken = inventory(model, registry)
    _check_roles(found, {*allow_other, *plain_names(taken, architecture)})
    _check_tiling(found, model)
    meta = sites(copy.deepcopy(model).to("meta"), registry)
    assert [site.key for site in meta] == [site.key for site in found], "the meta device tells other sites"
    with torch.no_grad():
        model(*args, **batch)  # transformers leaves marks of its own on a model that runs for the first time
    for name, kind in registry.adapters.items():
        if any(kind.value.claims(site) for site in found):
            everything = {**kind.value.defaults(), **spared(found, kind.value)}
            rule = Rule(target=".*", adapter=name, tied="share", allow_oversized=True, **everything)
            _check_round_trip(rule, model, registry, args, batch)


def _registry(architecture: Architecture) -> Registry:
    here = Provenance("checked", "given in Python", "")
    installed = load_registry()
    return Registry(
        adapters=installed.adapters,
        architectures={name: Registered(architecture, here) for name in architecture.types},
        models={},
        datasets={},
        tasks={},
    )


def _check_roles(found: tuple[Site, ...], allow_other: Collection[str]) -> None:
    other = [site.name for site in found if site.role.startswith("other.") and site.name not in allow_other]
    assert not other, f"no role for {other[:10]}"
    by_key: dict[str, list[str]] = defaultdict(list)
    for site in found:
        by_key[site.key].append(site.role)
    several = {key: roles for key, roles in by_key.items() if len(roles) > 1}
    assert not several, f"several roles for {several}"


def _check_tiling(found: tuple[Site, ...], model: nn.Module) -> None:
    parts: dict[str, list[Site]] = defaultdict(list)
    for site in found:
        if site.slice is not None:
            parts[site.name].append(site)
    for name, group in parts.items():
        axis = group[0].slice.axis if group[0].slice else 0
        extent = model.get_parameter(name).shape[axis]
        covered = sorted(index for site in group if site.slice for index in site.slice.indices())
        assert covered == list(range(extent)), f"the slices of {name} do not tile its {extent} indices once"


def _check_round_trip(
    rule: Rule, model: nn.Module, registry: Registry, args: tuple[Any, ...], batch: dict[str, Any]
) -> None:
    name = rule.adapter
    decided = plan(Spec(name="check", rules=(rule,)), model, registry)
    before = model_state(model)
    with operate(model, decided, registry=registry) as op:
        op.probe(*args, **batch)
        error = moved_by_merging(op, lambda: outputs_of(model(*args, **batch)))
    assert error <= BOUND, (
        f"{name} on every site: merging moves outputs by {error:.3g} of the largest. Perhaps a weight is read "
        "without calling its module: name that module in `uncalled`"
    )
    assert_same_state(before, model_state(model), f"after {name} on every site, merged and unmerged")
