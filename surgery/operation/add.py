"""Putting a plan's adapters on a body, and taking them off again."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import nn

from surgery.architecture import Site
from surgery.errors import StateError
from surgery.operation.attach import Built, attach_state, build_adapters, slot_key
from surgery.operation.bits import checksums
from surgery.operation.body import Body
from surgery.operation.guard import refuse_unfit
from surgery.operation.ledger import Ledger
from surgery.operation.slot import Member, Owner, Slot
from surgery.operation.untie import governing, keep_ties
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
    modules = base_modules(body.model)
    if not is_first:
        body.check_hosts()
        _refuse_merged(body, plan, modules)  # first: what is merged may also be cut off its ties
    refuse_unfit(plan, modules, is_first=is_first)
    if not is_first:
        _refuse_mixed_ties(body, plan, modules)
    built = build_adapters(plan, modules, registry)
    with body.ledger.all_or_nothing():
        if is_first:
            _freeze(modules, body.ledger)
        _loosen(body, plan, modules)
        keep_ties(plan, modules, body.ledger)
        _attach(body, plan, name, built, modules)


def remove_name(body: Body, name: str) -> None:
    """Take the adapters called `name` off their hosts. Hosts stay ready for others until the operation is undone."""
    body.check_hosts()
    undo = Ledger()
    with undo.all_or_nothing():
        _detach(body, name, undo)


def _loosen(body: Body, plan: Plan, modules: Mapping[str, nn.Module]) -> None:
    """Configurations must not say that a name is tied which is cut, as it is while it is merged."""
    before, loosened = body.loosened, governing(plan, modules)

    def note() -> None:
        body.loosened = (*before, *loosened)

    def unsay() -> None:
        for one in loosened:
            one.unsay()
        body.loosened = before

    body.ledger.act(note, unsay)


def _freeze(modules: Mapping[str, nn.Module], ledger: Ledger) -> None:
    """No base parameter trains while the model is operated."""
    parameters = [p for module in modules.values() for p in module._parameters.values() if p is not None]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]

    def freeze() -> None:
        for parameter in trained:
            parameter.requires_grad = False

    def give_back() -> None:
        for parameter in trained:
            parameter.requires_grad = True
        for parameter in frozen:
            parameter.requires_grad = False

    ledger.act(freeze, give_back)


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return path -> module for the base's own modules, under every path; what surgery attached is left out."""
    found: dict[str, nn.Module] = {"": model}
    stack = [("", model)]
    while stack:
        prefix, module = stack.pop()
        for name, child in module._modules.items():
            if child is not None and name != STATE_CHILD:
                path = prefix + name
                found[path] = child
                if child._modules:
                    stack.append((f"{path}.", child))
    return found


def _attach(body: Body, plan: Plan, name: str, built: list[Built], modules: Mapping[str, nn.Module]) -> None:
    owners = _Owners(modules)
    activated = {item.edit.site.path for item in built if not item.folds}
    overridden: dict[str, set[str]] = defaultdict(set)
    for item in built:
        for owner in (owner for site in item.edit.sites for owner in owners.of(site, item.edit.tied)):
            overridden[owner.path] |= {owner.parameter} if item.folds else set()
    for item in _may_be_overtaken(body, built):
        overridden[item.edit.site.path] |= {site.parameter for site in item.edit.sites}
    for path, parameters in overridden.items():
        body.hosts[path] = attach_state(modules[path], frozenset(parameters), path in activated, body.ledger)

    def forget() -> None:
        _detach(body, name, Ledger())

    def fill() -> None:
        for item in built:
            _register(body, name, item, owners)
        slots = [slot for slot in body.slots.values() if slot.expected is None]
        for slot, expected in zip(slots, checksums([slot.parameter for slot in slots]), strict=True):
            slot.expected = expected
        body.put(name, plan, built)

    body.ledger.act(fill, forget)


def _may_be_overtaken(body: Body, built: list[Built]) -> list[Built]:
    """Return output edits that may have to be folded some day: several names meet there, and not all merely add."""
    acting = [item for item in built if not item.folds]
    crowded = {item.edit.site.path for item in acting if body.acting.get(item.edit.site.path)}
    if not crowded:
        return []
    everything = [*acting, *(item for other in body.built.values() for item in other if not item.folds)]
    mixed = {item.edit.site.path for item in everything if not type(item.adapter).adds} & crowded
    return [item for item in everything if item.edit.site.path in mixed]


class _Owners:
    """Which modules read a parameter, looked up only where a tie makes it necessary."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._shared: dict[int, list[Owner]] | None = None

    def of(self, site: Site, tied: str) -> tuple[Owner, ...]:
        own = Owner(site.path, self._modules[site.path], site.parameter)
        if tied != "share":
            return (own,)
        if self._shared is None:
            self._shared = defaultdict(list)
            for path, module in self._modules.items():
                for local, parameter in module._parameters.items():
                    self._shared[id(parameter)].append(Owner(path, module, local))
        parameter = own.module._parameters[site.parameter]
        return (own, *(owner for owner in self._shared[id(parameter)] if owner.name != own.name))


def _register(body: Body, name: str, item: Built, owners: _Owners) -> None:
    edit = item.edit
    body.hosts[edit.site.path].put(name, slot_key(edit), item.adapter)
    for site in edit.sites:
        key = site.name if edit.tied != "untie" else f"{site.name} (untied)"
        if edit.tied == "share":
            # Another adapter may have taken the tensor under another of its names.
            names = (site.name, *site.tied)
            key = next((name for name in names if name in body.slots), key)
        if key not in body.slots:
            found = owners.of(site, edit.tied)
            parameter = found[0].module._parameters[site.parameter]
            assert parameter is not None
            body.slots[key] = Slot(site.name, found, parameter, edit.tied == "untie")
        body.slots[key].members.append(Member(name, item.adapter, site, item.folds))


def _detach(body: Body, name: str, undo: Ledger) -> None:
    built, plan = body.built.get(name, []), body.plans.get(name)
    slots, members = dict(body.slots), {key: list(slot.members) for key, slot in body.slots.items()}
    children = {path: dict(state._modules) for path, state in body.hosts.items() if name in state._modules}

    def back() -> None:
        body.slots = slots
        for key, slot in slots.items():
            slot.members = members[key]
        for path, modules in children.items():  # whole tables: the order of names is the order of state dict keys
            body.hosts[path]._modules.clear()
            body.hosts[path]._modules.update(modules)
        if plan is not None:
            body.put(name, plan, built)

    undo.act(lambda: None, back)
    body.built.pop(name, None)
    body.plans.pop(name, None)
    for slot in slots.values():
        slot.members = [member for member in slot.members if member.adapter_name != name]
    for acting in body.acting.values():
        acting.pop(name, None)
    body.refresh()
    for path in children:
        body.hosts[path].take(name)
    body.slots = {key: slot for key, slot in slots.items() if slot.members}


def _refuse_merged(body: Body, plan: Plan, modules: Mapping[str, nn.Module]) -> None:
    """An adapter built now would see merged weights as pristine."""
    merged = [slot for slot in body.slots.values() if slot.original is not None]
    if not merged:
        return
    sites = [site for edit in plan.edits for site in edit.sites]
    names = {site.name for site in sites}
    held = {id(modules[site.path]._parameters.get(site.parameter)) for site in sites if site.path in modules}
    taken = sorted(s.name for s in merged if s.name in names or id(s.parameter) in held or id(s.live) in held)
    if taken:
        more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
        raise StateError(f"a merge is live in {taken[0]}{more}", hint="op.unmerge() first")


def _refuse_mixed_ties(body: Body, plan: Plan, modules: Mapping[str, nn.Module]) -> None:
    """One tensor cannot be shared by one adapter and cut in two by another."""
    held = {id(slot.parameter): slot for slot in body.slots.values()}
    for edit in plan.edits:
        slot = held.get(id(modules[edit.site.path]._parameters[edit.site.parameter])) if edit.tied else None
        if slot is not None and slot.is_cut != (edit.tied == "untie"):
            present = "untie" if slot.is_cut else "share"
            raise StateError(
                f"{edit.site.name} would be `tied: {edit.tied}`, and adapters on the model hold {slot.name}, the same "
                f"tensor, as `tied: {present}`",
                hint="say the same in both specs",
            )
