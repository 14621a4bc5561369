"""What is true of a good description of models, check by check: what is wrong, where, and a way out."""

from __future__ import annotations

import copy
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from surgery.adapter import AdapterType
from surgery.architecture import Architecture, Site
from surgery.errors import Problem, StateError, SurgeryError
from surgery.operation import Operation, operate
from surgery.planning import inventory, plan, sites
from surgery.planning.sites import plain_names
from surgery.registry import Registry
from surgery.spec import Rule, Spec
from surgery.testing.spared import spared
from surgery.testing.state import assert_same_state, model_state
from surgery.testing.tiny import Tiny

__all__ = ["BOUND", "CHECKS", "Finding", "agree_between_heads", "examine", "moved_by_merging", "outputs_of"]

BOUND = 1e-3
"""How far merged outputs may be from operated ones in float32, of the largest: they are rounded in other places."""

CHECKS: Mapping[str, str] = {
    "build": "a tiny model of the class can be built and called",
    "roles": "every parameter has one role, or is named as other",
    "slices": "the parts of a fused weight make up its axis, each index once",
    "meta": "a model without weights tells the same sites",
    "forward": "a forward uses every site",
    "merge": "merged outputs are operated outputs, up to rounding, for each adapter type on each role",
    "identity": "merged and unmerged, the model is what it was, bit for bit",
    "measure": "weights do what they are described as, where that can be measured on small models",
    "heads": "all task heads tell the same roles of the base model",
}


@dataclass(frozen=True)
class Finding:
    """What one check said of one model.

    Attributes:
        check: its name, of `CHECKS`.
        kind: the `model_type`.
        model: the model's class, or "" where it is about all of them.
        problems: what is wrong; empty where nothing is.
        skipped: why the check could not be made, or "".
        note: what was looked at.
    """

    check: str
    kind: str
    model: str
    problems: tuple[Problem, ...] = ()
    skipped: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        return "failed" if self.problems else "skipped" if self.skipped else "ok"


def examine(
    kind: str, tiny: Tiny, registry: Registry, other: Sequence[str] = (), unused: Sequence[str] = ()
) -> Iterator[Finding]:
    """Yield the findings on one model; its bits are as before when all are taken.

    Args:
        kind: the model's type, which the registry knows a description of.
        tiny: the model and what it can be called with.
        registry: the adapter types to put on it, and the description.
        other: patterns, full match, of names of parameters that need no role.
        unused: the same of parameters that this model's forward never uses, as a decoder without an encoder has them.
    """
    where = f"{kind}, {tiny.name}"

    def told(check: str, problems: Iterable[Problem], note: str = "") -> Finding:
        placed = (Problem(one.what, f"{where}, {check}: {one.where}".rstrip(": "), one.hint) for one in problems)
        return Finding(check, kind, tiny.name, tuple(placed), note=note)

    try:
        found = sites(tiny.model, registry)
    except SurgeryError as error:  # two roles for one element, or a view that its axis does not have
        yield told("slices", error.problems)
        return
    plain = plain_names(inventory(tiny.model, registry), registry.architectures[kind].value)
    bare = [site for site in found if site.name not in plain or not site.role.startswith("other.")]
    yield told("roles", _without_role(bare, other), f"{len(found)} sites, {len({site.role for site in found})} roles")
    yield told("slices", _holes(found, tiny.model))
    yield told("meta", _on_meta(found, tiny, registry))
    silent: dict[str, None] = {}
    apart: list[Problem] = []
    changed: list[Problem] = []
    kinds = {name: one.value for name, one in registry.adapters.items() if any(map(one.value.claims, found))}
    with torch.no_grad():
        tiny.model(*tiny.args, **tiny.batch)  # transformers leaves marks of its own on a model that runs first
    for name, adapter in kinds.items():
        before = model_state(tiny.model)
        try:
            trial = _Trial(name, adapter, tiny, registry)
            trial.run(found)
            silent.update(dict.fromkeys(trial.silent))
            apart += trial.apart
        except SurgeryError as error:
            changed += error.problems
        changed += _difference(before, tiny.model, name)
    yield told("forward", _unused(silent, unused))
    yield told("merge", apart, f"{', '.join(kinds)}")
    yield told("identity", changed)


def _without_role(found: Sequence[Site], other: Sequence[str]) -> list[Problem]:
    bare = [site.name for site in found if site.role.startswith("other.") and not _matches(other, site.name)]
    open_roles = {site.name: site.open for site in found}
    twice: dict[str, list[str]] = defaultdict(list)
    for site in found:
        twice[site.key].append(site.role)
    problems = [
        Problem("it has several roles: " + ", ".join(roles), key, "give it one")
        for key, roles in twice.items()
        if len(roles) > 1
    ]
    for name, more in _alike(bare).items():
        hint = f"give it a role, or say that it needs none: --other {_pattern(name)}"
        if open_roles[name]:
            hint = f"it may be {' or '.join(open_roles[name])}: describe how it is laid out"
        problems.append(Problem(f"no role{more}", name, hint))
    return problems


def _unused(silent: Iterable[str], unused: Sequence[str]) -> list[Problem]:
    # A part of a fused weight is called by its weight's name and its role.
    names = [name for name in silent if not _matches(unused, name.partition(":")[0])]
    hint = "name its module in `uncalled`, or say that the class never uses it: --unused "
    return [
        Problem(
            f"a forward does not use it, or reads it without calling its module{more}",
            name,
            hint + _pattern(name.partition(":")[0]),
        )
        for name, more in _alike(names).items()
    ]


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _pattern(name: str) -> str:
    """Return a pattern, ready for a shell, for this parameter in every layer and under every head."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    text = re.escape(".".join(parts[numbers[-1] + 1 :] if numbers else parts[-2:]))
    return shlex.quote(rf".*\b{text}" if len(parts) > 1 else text)


def _alike(names: Iterable[str]) -> dict[str, str]:
    """Return the first of names that differ in their indices only -> a word on the others."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return {group[0]: f" (and {len(group) - 1} more like it)" if len(group) > 1 else "" for group in groups.values()}


def _holes(found: Sequence[Site], model: nn.Module) -> list[Problem]:
    parts: dict[str, list[Site]] = defaultdict(list)
    for site in found:
        if site.slice is not None:
            parts[site.name].append(site)
    problems = []
    for name, group in parts.items():
        first = group[0].slice
        assert first is not None
        extent = model.get_parameter(name).shape[first.axis]
        taken = sorted(index for site in group if site.slice for index in site.slice.indices())
        missing = sorted(set(range(extent)) - set(taken))
        if missing:
            roles = ", ".join(site.role for site in group)
            some = f"{missing[0]} to {missing[-1]}" if len(missing) > 1 else str(missing[0])
            what = f"{len(missing)} of {extent} indices of axis {first.axis} ({some}) have no role beside {roles}"
            problems.append(Problem(what, name, "give the rest a role, so that a rule can reach or leave it"))
        if len(taken) > len(set(taken)):
            problems.append(Problem("its parts overlap", name, "give the parts slices that do not overlap"))
    return problems


def _on_meta(found: Sequence[Site], tiny: Tiny, registry: Registry) -> list[Problem]:
    bare = tiny.bare
    if bare is None:  # a copy without values: it has lost its ties
        bare = copy.deepcopy(tiny.model).to("meta")
        found = [replace(site, tied=()) for site in found]
    meta = {site.key: site if tiny.bare is not None else replace(site, tied=()) for site in sites(bare, registry)}
    live = {site.key: site for site in found}
    return [
        Problem(
            f"it is {_said(live.get(key))} in a model with weights and {_said(meta.get(key))} in one without",
            key,
            "a plan from a configuration would adapt something else: do not let roles depend on values",
        )
        for key in {**live, **meta}
        if live.get(key) != meta.get(key)
    ]


def _said(site: Site | None) -> str:
    if site is None:
        return "absent"
    tied = f", tied to {', '.join(site.tied)}" if site.tied else ""
    return f"{site.role} (host {site.host}, layer {site.layer}{tied})"


class _Trial:
    """One adapter type on one model: on every site and, where it acts on outputs, role by role.

    Attributes:
        silent: sites that a forward does not use.
        apart: roles on which merging moves the outputs.
    """

    def __init__(self, name: str, kind: AdapterType[Any], tiny: Tiny, registry: Registry) -> None:
        self._name = name
        self._kind = kind
        self._tiny = tiny
        self._registry = registry
        self._acts = False
        self._spared: dict[str, Any] = {}
        self.silent: list[str] = []
        self.apart: list[Problem] = []

    def run(self, found: Sequence[Site]) -> None:
        """Try the adapter type on all sites, and leave the model as it was."""
        self._spared = spared(found, self._kind)
        error = self._error(".*", is_probed=True)
        # A folded parameter is what a merge stores: only output edits can mean something else than their fold.
        roles = dict.fromkeys(site.role for site in found if self._kind.claims(site)) if self._acts else {}
        left_out = self._spared.get("exclude", {}).get("target", "")
        for role in roles:
            if left_out and any(site.role == role and re.fullmatch(left_out, site.name) for site in found):
                continue
            one = self._error(re.escape(role))
            if one > BOUND:
                names = [site.name for site in found if site.role == role]
                self.apart.append(self._problem(role, one, names[0]))
        if error > BOUND and not self.apart:
            self.apart.append(self._problem("every role", error, ""))

    def _problem(self, role: str, error: float, where: str) -> Problem:
        return Problem(
            f"{self._name} on {role}: merging moves outputs by {error:.3g} of the largest",
            where,
            "a weight is read without calling its module: name that module in `uncalled`",
        )

    def _error(self, role: str, *, is_probed: bool = False) -> float:
        """Return how far merging on a role moves the outputs."""
        more = {**self._kind.defaults(), **(self._spared if is_probed else {})}
        rule = Rule(role=role, adapter=self._name, tied="share", allow_oversized=True, **more)
        decided = plan(Spec(name="check", rules=(rule,)), self._tiny.model, self._registry)
        with operate(self._tiny.model, decided, registry=self._registry) as op:
            if is_probed:
                self._acts = any(not member.folds for slot in op.body.slots.values() for member in slot.members)
                self._probe(op)
            return moved_by_merging(op, self._outputs)

    def _probe(self, op: Operation) -> None:
        try:
            op.probe(*self._tiny.args, **self._tiny.batch)
        except StateError as error:
            self.silent = [one.where for one in error.problems]

    def _outputs(self) -> list[torch.Tensor]:
        return outputs_of(self._tiny.model(*self._tiny.args, **self._tiny.batch))


def moved_by_merging(op: Operation, outputs: Callable[[], list[torch.Tensor]]) -> float:
    """Give the adapters other values, merge and unmerge; return how far outputs move with the merge, of the largest."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(op.trainable().items()):
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.dtype))
        operated = outputs()
        op.merge()
        merged = outputs()
        op.unmerge()
    return max((_distance(*pair) for pair in zip(operated, merged, strict=True)), default=0.0)


def _distance(live: torch.Tensor, folded: torch.Tensor) -> float:
    if not live.numel():
        return 0.0
    return float((live - folded).abs().max()) / max(1.0, float(live.abs().max()))


def outputs_of(result: Any) -> list[torch.Tensor]:
    """Return the tensors of numbers that a model gave, in order: of a mapping, a tuple, or one tensor."""
    if isinstance(result, torch.Tensor):
        return [result.double()] if result.is_floating_point() else []
    items = result.values() if hasattr(result, "values") else result if isinstance(result, tuple | list) else ()
    return [tensor for item in items for tensor in outputs_of(item)]


def _difference(before: Any, model: nn.Module, name: str) -> list[Problem]:
    try:
        assert_same_state(before, model_state(model), f"after {name} was merged and unmerged")
    except AssertionError as error:
        return [Problem(str(error), "", "the model's forward writes to its own state, or surgery has a bug")]
    return []


def agree_between_heads(architecture: Architecture, kind: str, tinies: Sequence[Tiny], registry: Registry) -> Finding:
    """Return whether all models tell the same roles of what their base models share."""
    told: dict[str, tuple[str, str]] = {}
    problems: dict[str, Problem] = {}
    for tiny in tinies:
        try:
            found = sites(tiny.model, registry)
        except SurgeryError:  # told already
            continue
        for name, role in _inside(architecture, found).items():
            said, by = told.setdefault(name, (role, tiny.name))
            if said != role:
                what = f"it is {said} in {by} and {role} in {tiny.name}"
                problems.setdefault(name, Problem(what, f"{kind}, heads: {name}", "name every base model in `base`"))
    return Finding("heads", kind, "", tuple(problems.values()), note=f"{len(tinies)} classes")


def _inside(architecture: Architecture, found: Sequence[Site]) -> dict[str, str]:
    """Return name in the base model -> what its parameter is, for models with a head and without."""
    names = [site.name for site in found]
    bases = (f"{base}." for base in architecture.bases if base)
    base = next((base for base in bases if any(name.startswith(base) for name in names)), "")
    roles: dict[str, list[str]] = defaultdict(list)
    for site in found:
        if site.name.startswith(base):
            place = f" of {site.stack} {site.layer}" if site.layer is not None else ""
            is_own = site.role == f"other.{base}".removesuffix(".")  # of the base model itself, in no module of it
            role = f"other.{site.parameter}" if is_own else site.role.replace(f"other.{base}", "other.")
            roles[site.name.removeprefix(base)].append(role + place)
    return {name: " and ".join(sorted(parts)) for name, parts in roles.items()}
