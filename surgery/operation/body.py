"""The operated body: slots, adapters and host states, and the one function that changes what is merged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from surgery.adapter import Adapter
from surgery.errors import DriftError, StateError
from surgery.operation.attach import Built, slot_key
from surgery.operation.bits import Expected, checksums
from surgery.operation.host import HostState, is_operated
from surgery.operation.ledger import Ledger
from surgery.operation.merge import MergeRecord, merged_value
from surgery.operation.originals import Keeper, Original
from surgery.operation.residue import kept_residue
from surgery.operation.slot import Owner, Slot
from surgery.operation.untie import Loosened
from surgery.planning import Edit, Plan
from surgery.planning.live import STATE_CHILD

__all__ = ["Body"]

Groups = tuple[tuple[Adapter, ...], ...]
"""Adapters of one name on one host, those of one rule together: they share type and options."""

_SHARED = ("FSDPModule", "FullyShardedDataParallel")


@dataclass
class _Change:
    """One slot's next live value, computed and checked before anything is swapped."""

    slot: Slot
    value: torch.Tensor
    original: Original | None


@dataclass
class Body:
    """The mutable state of one operation.

    Attributes:
        model: the operated model.
        keeper: keeps originals while a merge is live.
        ledger: inverses of everything done to the model, merges apart.
        slots: edited tensors by name.
        built: adapter name -> its edits' adapters.
        plans: adapter name -> its plan.
        hosts: module path -> the host's child.
        acting: module path -> adapter name -> groups that act on the host's output, whether active or not.
        merged: adapters folded into the live weights.
        disabled: adapters that are switched off.
        loosened: configurations that say that nothing is tied, as they must of a cut model.
    """

    model: nn.Module
    keeper: Keeper
    ledger: Ledger = field(default_factory=Ledger)
    slots: dict[str, Slot] = field(default_factory=dict)
    built: dict[str, list[Built]] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    hosts: dict[str, HostState] = field(default_factory=dict)
    acting: dict[str, dict[str, Groups]] = field(default_factory=dict)
    merged: frozenset[str] = frozenset()
    disabled: frozenset[str] = frozenset()
    loosened: tuple[Loosened, ...] = ()

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, nn.Parameter, Edit]]:
        """Yield (full name in the model, parameter, edit) for every trainable tensor of these adapters."""
        for name in names:
            for built in self.built[name]:
                path = built.edit.site.path
                prefix = f"{path}.{STATE_CHILD}" if path else STATE_CHILD
                for local, parameter in built.adapter.named_parameters():
                    yield f"{prefix}.{name}.{slot_key(built.edit)}.{local}", parameter, built.edit

    def put(self, name: str, plan: Plan, built: list[Built]) -> None:
        """Take up the adapters `built` under `name`; their slots exist already."""
        self.plans[name], self.built[name] = plan, built
        groups: dict[str, dict[int, list[Adapter]]] = {}
        for item in built:
            if not item.folds:
                groups.setdefault(item.edit.site.path, {}).setdefault(item.edit.rule, []).append(item.adapter)
        for path, by_rule in groups.items():
            self.acting.setdefault(path, {})[name] = tuple(tuple(group) for _, group in sorted(by_rule.items()))
        self.refresh(name)

    def refuse_shared(self, act: str) -> None:
        """Raise StateError when somebody shared the model out (FSDP): each process holds parts, `act` needs wholes."""
        kinds = {type(module) for module in self.model.modules()}
        if any(base.__name__ in _SHARED for kind in kinds for base in kind.__mro__):
            hint = "shard copy.deepcopy(op.model) instead, and copy what it learnt back: docs/training.md shows it"
            raise StateError(f"the model is sharded, and {act} needs whole tensors", hint=hint)

    def check(self) -> None:
        """Raise DriftError when somebody else changed a class, a pointer or a bit."""
        self.check_hosts()
        for slot in self.slots.values():
            slot.check()

    def check_hosts(self) -> None:
        """Raise DriftError when somebody else changed a class or took a child away. Cheap: no bit is read."""
        for slot in self.slots.values():
            for owner in slot.owners:
                if not self._holds(owner):
                    raise DriftError(
                        f"{owner.path or 'the model'}, its class or its {STATE_CHILD!r} child was replaced",
                        hint="put it back, or load the base again",
                    )

    def _holds(self, owner: Owner) -> bool:
        """Whether the model still has the operated host where it was."""
        try:
            present = self.model.get_submodule(owner.path)
        except AttributeError:
            return False
        module = owner.module
        return present is module and is_operated(module) and hasattr(type(module), "_surgery_recipe")

    def set_merged(self, target: frozenset[str]) -> tuple[MergeRecord, ...]:
        """Make the live weights those of the set `target`; all of them or none.

        Everything is computed and checked first; the swap itself computes nothing and is taken back when interrupted.
        """
        changed = target ^ self.merged
        affected = [s for s in self.slots.values() if any(m.adapter_name in changed for m in s.members)]
        self._refuse_mixture(target)
        self.check_hosts()
        for slot in affected:
            slot.check()
        records: list[MergeRecord] = []
        changes: list[_Change] = []
        for slot in affected:
            if slot.chain(target):
                value, record = merged_value(slot, target)
                original = self._way_back(slot, value, target)
                records.append(record)
            else:
                value, original = slot.pristine(), None
            changes.append(_Change(slot, value, original))
        futures = self._sums(changes)
        swaps = Ledger()
        with swaps.all_or_nothing():
            self.remember(swaps, affected)
            for change, expected in zip(changes, futures, strict=True):
                _point(change)
                change.slot.expected = expected
            self.merged = target
            self.refresh()
        return tuple(records)

    def _way_back(self, slot: Slot, value: torch.Tensor, target: frozenset[str]) -> Original:
        """Return how to get the pristine tensor back once `value` is live in its place."""
        if self.keeper.policy == "residue":
            # A residue belongs to one merged value: another set of adapters needs another one.
            expected = slot.original.checksum if slot.original is not None else slot.expected
            assert expected is not None
            parameter = slot.owners[0].parameter
            found = kept_residue(slot.name, parameter, slot.pristine(), value, slot.chain(target), expected)
            if found is not None:
                return found
            if slot.original is not None:
                return self.keeper.keep(slot.names, slot.pristine(), expected)
        return slot.original or self.keeper.keep(slot.names, slot.live.detach(), slot.expected)

    def _sums(self, changes: list[_Change]) -> list[Expected]:
        """What will be live, as checksums. An original's is known, and need not be read again by a thread."""
        known = [c.slot.original.checksum if c.original is None and c.slot.original else None for c in changes]
        fresh = iter(checksums([change.value for change, sum_ in zip(changes, known, strict=True) if sum_ is None]))
        return [next(fresh) if sum_ is None else sum_ for sum_ in known]

    def remember(self, ledger: Ledger, slots: Iterable[Slot]) -> None:
        """Record in `ledger` how to make the present live tensors of `slots` live again, by pointer."""
        merged = self.merged
        held = [(slot, slot.live, slot.live.data, slot.original, slot.expected) for slot in slots]

        def restore() -> None:
            for slot, live, data, original, expected in held:
                live.data = data
                for owner in slot.owners:
                    owner.module._parameters[owner.parameter] = live
                slot.original, slot.expected = original, expected
            self.merged = merged
            self.refresh()

        ledger.act(lambda: None, restore)

    def refresh(self, name: str | None = None) -> None:
        """Tell every host (or those of one adapter) what is active now. Depends on the state alone; can be repeated."""
        hidden = self.merged | self.disabled
        # A tensor is cut while it is merged; a model that is not is saved with the base's own tensor, which is tied.
        is_cut = any(slot.is_cut and slot.chain(self.merged) for slot in self.slots.values())
        for loosened in self.loosened:
            (loosened.say if is_cut else loosened.unsay)()
        chosen: Iterable[Slot] = self.slots.values()
        paths: Iterable[str] = self.hosts
        if name is not None:
            paths = {built.edit.site.path for built in self.built[name]}
            keys = {site.name for built in self.built[name] for site in built.edit.sites}
            chosen = [slot for slot in chosen if any(owner.name in keys for owner in slot.owners)]
        for slot in chosen:
            # Output edits that are not merged stay output edits where that means the same; all else is folded.
            folding, overtaken = self._folded(slot, self.merged)
            folding -= self.disabled
            chain = slot.chain(self.merged, folding, overtaken) if folding or overtaken else ()
            for owner in slot.owners:
                owner.state.overrides[owner.parameter] = chain
                owner.state.pristine.pop(owner.parameter, None)
                if chain and slot.original is not None:
                    owner.state.pristine[owner.parameter] = slot.pristine()
        for path in paths:
            self._refresh_activations(path, hidden)

    def _refresh_activations(self, path: str, hidden: frozenset[str]) -> None:
        acting = self.acting.get(path, {})
        active = sorted(acting.keys() - hidden - self._overtaken(path, self.merged))
        self.hosts[path].set_activations(tuple(group for name in active for group in acting[name]))

    def _folded(self, slot: Slot, merged: frozenset[str]) -> tuple[set[str], set[str]]:
        """Return which adapters, apart from `merged`, fold into `slot` on the fly: always, and for their order only."""
        always = {member.adapter_name for member in slot.members if member.folds} - merged
        overtaken = self._overtaken(slot.owners[0].path, merged)
        return always, {m.adapter_name for m in slot.members if not m.folds}.intersection(overtaken)

    def _overtaken(self, path: str, merged: frozenset[str]) -> set[str]:
        """Return the output edits of a host that must be folded instead, or they would come too late.

        The live parameter already holds what is merged, so an output edit acts after it. Where the canonical order
        has it before, that is the same only if both merely add.
        """
        acting = self.acting.get(path, {})
        found: set[str] = set()
        if len(acting) < 2 or merged.isdisjoint(acting):
            return found
        is_last, only_adds = True, True
        for name in sorted(acting.keys() - self.disabled, reverse=True):
            adds = _adds_only(acting[name])
            if name not in merged:
                if is_last or (only_adds and adds):
                    continue
                found.add(name)
            is_last, only_adds = False, only_adds and adds
        return found

    def _refuse_mixture(self, target: frozenset[str]) -> None:
        if self.keeper.policy == "ram":
            return
        for slot in self.slots.values():
            folding = set().union(*self._folded(slot, target))
            if slot.chain(target) and folding:
                raise StateError(
                    f"{slot.name} cannot hold a merge while {', '.join(sorted(folding))} is folded in on the fly "
                    f"(keep: {self.keeper.policy})",
                    hint="merge both, or operate with keep='ram'",
                )


def _adds_only(groups: Groups) -> bool:
    """Whether all adapters of `groups` add the same whatever the parameter holds, so that order does not matter."""
    return all(type(adapter).adds for group in groups for adapter in group)


def _point(change: _Change) -> None:
    """Make the value live: in the same Parameter object, or in a new one where a tied name is cut off."""
    slot = change.slot
    if not slot.is_cut:
        slot.live.data = change.value
    else:
        fresh = slot.parameter if change.original is None else nn.Parameter(change.value, requires_grad=False)
        for owner in slot.owners:
            owner.module._parameters[owner.parameter] = fresh
    slot.original = change.original
