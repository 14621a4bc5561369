"""The operated body: slots, adapters and host states, and the one function that changes what is merged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from surgery.errors import DriftError, StateError
from surgery.operation.attach import Built, slot_key
from surgery.operation.bits import checksum
from surgery.operation.host import HostState, is_operated
from surgery.operation.ledger import Ledger
from surgery.operation.merge import MergeRecord, merged_value
from surgery.operation.originals import Keeper, Original
from surgery.operation.slot import Slot
from surgery.planning import Edit, Plan
from surgery.planning.live import STATE_CHILD

__all__ = ["Body"]


@dataclass
class _Change:
    """One slot's next live value, computed and checked before anything is swapped."""

    slot: Slot
    value: torch.Tensor
    original: Original | None
    expected: int


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
        merged: adapters folded into the live weights.
        disabled: adapters that are switched off.
    """

    model: nn.Module
    keeper: Keeper
    ledger: Ledger = field(default_factory=Ledger)
    slots: dict[str, Slot] = field(default_factory=dict)
    built: dict[str, list[Built]] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    hosts: dict[str, HostState] = field(default_factory=dict)
    merged: frozenset[str] = frozenset()
    disabled: frozenset[str] = frozenset()

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, nn.Parameter, Edit]]:
        """Yield (full name in the model, parameter, edit) for every trainable tensor of these adapters."""
        for name in names:
            for built in self.built[name]:
                path = built.edit.site.path
                prefix = f"{path}.{STATE_CHILD}" if path else STATE_CHILD
                for local, parameter in built.adapter.named_parameters():
                    yield f"{prefix}.adapters.{name}.{slot_key(built.edit)}.{local}", parameter, built.edit

    def check(self) -> None:
        """Raise DriftError when somebody else changed a class, a pointer or a bit."""
        for slot in self.slots.values():
            for owner in slot.owners:
                if not is_operated(owner.module) or not hasattr(type(owner.module), "_surgery_recipe"):
                    raise DriftError(
                        f"the class or the {STATE_CHILD!r} child of {owner.path or 'the model'} was replaced",
                        hint="put it back, or load the base again",
                    )
            slot.check()

    def set_merged(self, target: frozenset[str]) -> tuple[MergeRecord, ...]:
        """Make the live weights those of the set `target`; all of them or none.

        Everything is computed and checked first; the swap itself computes nothing and is taken back when interrupted.
        """
        changed = target ^ self.merged
        affected = [s for s in self.slots.values() if any(m.adapter_name in changed for m in s.members)]
        self._refuse_mixture(target)
        for slot in affected:
            slot.check()
        records: list[MergeRecord] = []
        changes: list[_Change] = []
        for slot in affected:
            if slot.chain(target):
                value, record = merged_value(slot, target)
                original = slot.original or self.keeper.keep(slot.name, slot.live.detach(), slot.expected)
                records.append(record)
            else:
                value, original = slot.pristine(), None
            changes.append(_Change(slot, value, original, checksum(value)))
        swaps = Ledger()
        with swaps.all_or_nothing():
            self.remember(swaps, affected)
            for change in changes:
                _point(change)
            self.merged = target
            self.refresh()
        return tuple(records)

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

    def refresh(self) -> None:
        """Tell every host what is active now. Depends on the state alone, so it can be repeated."""
        hidden = self.merged | self.disabled
        for slot in self.slots.values():
            folding = {m.adapter_name for m in slot.members if m.folds} - hidden
            chain = slot.chain(folding | self.merged) if folding else ()
            chain = tuple(link for link in chain if self._is_folded(link[0], slot))
            for owner in slot.owners:
                owner.state.overrides[owner.parameter] = chain
                owner.state.pristine.pop(owner.parameter, None)
                if chain and slot.original is not None:
                    owner.state.pristine[owner.parameter] = slot.pristine()
        self._refresh_activations(hidden)

    def _is_folded(self, adapter: nn.Module, slot: Slot) -> bool:
        """Output edits that are not merged stay output edits; everything else in a chain is folded."""
        member = next(member for member in slot.members if member.adapter is adapter)
        return member.folds or member.adapter_name in self.merged

    def _refresh_activations(self, hidden: frozenset[str]) -> None:
        groups: dict[str, dict[tuple[str, str], list[Built]]] = {path: {} for path in self.hosts}
        for name in sorted(set(self.built) - hidden):
            for built in self.built[name]:
                if not built.folds:
                    key = (name, built.edit.adapter)
                    groups[built.edit.site.path].setdefault(key, []).append(built)
        for path, state in self.hosts.items():
            state.activations = tuple(
                tuple(built.adapter for built in group) for _, group in sorted(groups[path].items())
            )

    def _refuse_mixture(self, target: frozenset[str]) -> None:
        if self.keeper.policy == "ram":
            return
        for slot in self.slots.values():
            folding = {m.adapter_name for m in slot.members if m.folds} - target
            if slot.chain(target) and folding:
                raise StateError(
                    f"{slot.name} cannot hold a merge while {', '.join(sorted(folding))} is folded in on the fly "
                    f"(keep: {self.keeper.policy})",
                    hint="merge both, or operate with keep='ram'",
                )


def _point(change: _Change) -> None:
    """Make the value live: in the same Parameter object, or in a new one where a tied name is cut off."""
    slot = change.slot
    if not slot.is_cut:
        slot.live.data = change.value
    else:
        fresh = slot.parameter if change.original is None else nn.Parameter(change.value, requires_grad=False)
        for owner in slot.owners:
            owner.module._parameters[owner.parameter] = fresh
    slot.original, slot.expected = change.original, change.expected
