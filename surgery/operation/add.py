"""Putting a plan's adapters on a body, and taking them off again."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping

from torch import nn

from surgery.architecture import Site
from surgery.errors import StateError
from surgery.operation.attach import Built, attach_state, build_adapters, slot_key
from surgery.operation.bits import checksum
from surgery.operation.body import Body
from surgery.operation.guard import refuse_unfit
from surgery.operation.host import HostState
from surgery.operation.ledger import Ledger
from surgery.operation.slot import Member, Owner, Slot
from surgery.planning import Plan
from surgery.planning.live import STATE_CHILD
from surgery.registry import Registry

__all__ = ["add_plan", "remove_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def add_plan(body: Body, plan: Plan, name: str, registry: Registry, *, is_first: bool) -> None:
    """Attach the adapters of `plan` under `name`, or leave body and model as they were."""
    if not _NAME.fullmatch(name):
        raise StateError(f"{name!r} cannot name an adapter", hint="use letters, digits, - and _, at most 64")
    if name in body.plans:
        raise StateError(f"an adapter is already called {name!r}", hint="choose another name, or op.remove() it")
    modules = dict(body.model.named_modules(remove_duplicate=False))
    refuse_unfit(body.model, plan, modules, is_first=is_first)
    if body.merged:
        _refuse_merged(body, plan)
    built = build_adapters(plan, modules, registry)
    with body.ledger.all_or_nothing():
        if is_first:
            _freeze(body.model, body.ledger)
        _attach(body, plan, name, built, modules)


def remove_name(body: Body, name: str) -> None:
    """Take the adapters called `name` off their hosts. Hosts stay ready for others until the operation is undone."""
    undo = Ledger()
    with undo.all_or_nothing():
        _detach(body, name, undo)


def _freeze(model: nn.Module, ledger: Ledger) -> None:
    """No base parameter trains while the model is operated."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def set_all(value: bool) -> Callable[[], None]:
        def act() -> None:
            for parameter in trained:
                parameter.requires_grad_(value)

        return act

    ledger.act(set_all(False), set_all(True))


def _attach(body: Body, plan: Plan, name: str, built: list[Built], modules: Mapping[str, nn.Module]) -> None:
    overridden: dict[str, set[str]] = defaultdict(set)
    activated: set[str] = set()
    owners: dict[int, list[Owner]] = {}
    for path, module in modules.items():
        for local, parameter in module._parameters.items():
            if parameter is not None and STATE_CHILD not in path.split("."):
                owners.setdefault(id(parameter), []).append(Owner(path, module, local))
    for item in built:
        if not item.folds:
            activated.add(item.edit.site.path)
        for site in item.edit.sites:
            for owner in _owners_of(site, item.edit.tied, modules, owners):
                overridden[owner.path] |= {owner.parameter} if item.folds else set()
    for path in overridden:
        attach_state(modules[path], frozenset(overridden[path]), path in activated, body.ledger)
        state = modules[path]._modules[STATE_CHILD]
        assert isinstance(state, HostState)
        body.hosts[path] = state

    def forget() -> None:
        _detach(body, name, Ledger())

    def fill() -> None:
        for item in built:
            _register(body, name, item, modules, owners)
        body.plans[name], body.built[name] = plan, built
        body.refresh()

    body.ledger.act(fill, forget)


def _owners_of(
    site: Site, tied: str, modules: Mapping[str, nn.Module], owners: Mapping[int, list[Owner]]
) -> list[Owner]:
    own = Owner(site.path, modules[site.path], site.parameter)
    if tied != "share":
        return [own]
    parameter = own.module._parameters[site.parameter]
    return [own, *(owner for owner in owners[id(parameter)] if owner.name != own.name)]


def _register(
    body: Body, name: str, item: Built, modules: Mapping[str, nn.Module], owners: Mapping[int, list[Owner]]
) -> None:
    edit = item.edit
    table = body.hosts[edit.site.path].adapters
    if name not in table:
        table[name] = nn.ModuleDict()
    group = table[name]
    assert isinstance(group, nn.ModuleDict)
    group[slot_key(edit)] = item.adapter
    for site in edit.sites:
        key = site.name if edit.tied != "untie" else f"{site.name} (untied)"
        if key not in body.slots:
            parameter = modules[site.path]._parameters[site.parameter]
            assert parameter is not None
            found = tuple(_owners_of(site, edit.tied, modules, owners))
            body.slots[key] = Slot(site.name, found, parameter, edit.tied == "untie", checksum(parameter))
        body.slots[key].members.append(Member(name, item.adapter, site, item.folds))


def _detach(body: Body, name: str, undo: Ledger) -> None:
    built = body.built.pop(name, [])
    plan = body.plans.pop(name, None)
    slots = dict(body.slots)
    members = {key: list(slot.members) for key, slot in slots.items()}
    tables = {path: state.adapters[name] for path, state in body.hosts.items() if name in state.adapters}

    def back() -> None:
        if plan is not None:
            body.plans[name], body.built[name] = plan, built
        body.slots = slots
        for key, slot in slots.items():
            slot.members = members[key]
        for path, table in tables.items():
            body.hosts[path].adapters[name] = table
        body.refresh()

    undo.act(lambda: None, back)
    for slot in body.slots.values():
        slot.members = [member for member in slot.members if member.adapter_name != name]
    body.refresh()
    for path in tables:
        del body.hosts[path].adapters[name]
    body.slots = {key: slot for key, slot in slots.items() if slot.members}


def _refuse_merged(body: Body, plan: Plan) -> None:
    """An adapter built now would see merged weights as pristine."""
    names = {site.name for edit in plan.edits for site in edit.sites}
    taken = sorted(slot.name for slot in body.slots.values() if slot.original is not None and slot.name in names)
    if taken:
        raise StateError(f"a merge is live in {taken[0]} (and {len(taken) - 1} more)", hint="op.unmerge() first")
