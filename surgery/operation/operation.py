"""An operation: a model with adapters on it, and every way forward and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from surgery.architecture import Site
from surgery.errors import DriftError, StateError, nearest
from surgery.operation import probe as probing
from surgery.operation.attach import Built
from surgery.operation.bits import checksum
from surgery.operation.host import is_operated
from surgery.operation.ledger import Ledger
from surgery.operation.merge import MergeRecord, merged_value
from surgery.operation.originals import Keeper, Original
from surgery.operation.slot import Slot
from surgery.planning import Edit, Plan
from surgery.planning.live import STATE_CHILD
from surgery.registry import Registry

__all__ = ["Operation"]


class Operation:
    """What `operate` returns: the one handle on an operated model.

    As a context manager it undoes everything when the block ends, bit for bit, unless `commit` was called.

    Attributes:
        model: the operated model, the very object that was given.
        keep: where originals are while a merge is live: `ram`, `disk` or `none`.
    """

    def __init__(self, model: nn.Module, registry: Registry, keeper: Keeper) -> None:
        self.model = model
        self.keep = keeper.policy
        self._registry = registry
        self._keeper = keeper
        self._ledger = Ledger()
        self._slots: dict[str, Slot] = {}
        self._built: dict[str, list[Built]] = {}
        self._plans: dict[str, Plan] = {}
        self._merged: frozenset[str] = frozenset()
        self._disabled: frozenset[str] = frozenset()
        self._suspended = 0
        self._committed = False
        self._over = False

    # What there is

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters on the model, sorted."""
        return tuple(sorted(self._plans))

    @property
    def merged(self) -> frozenset[str]:
        """Names of the adapters that are folded into the live weights."""
        return self._merged

    def plan(self, name: str | None = None) -> Plan:
        """Return the plan of one adapter (of the only one, without a name)."""
        return self._plans[self._one(name)]

    def trainable(self, *names: str) -> dict[str, nn.Parameter]:
        """Return every trainable tensor by its full name in the model: what may reach an optimizer, and nothing else.

        Raises:
            StateError: an adapter is merged, so that training it would change nothing.
        """
        chosen = self._choose(names)
        if self._merged & set(chosen):
            raise StateError(
                f"{_list(self._merged & set(chosen))} is merged: training it would not change what the model computes",
                hint="op.unmerge() first",
            )
        return {name: parameter for name, parameter, _ in self._tensors(chosen)}

    def trainable_sites(self, *names: str) -> dict[str, Site]:
        """Return, for every name that `trainable` gives, the site that it adapts."""
        return {name: edit.site for name, _, edit in self._tensors(self._choose(names))}

    # Merge and unmerge

    def merge(self, *names: str, irreversible: bool = False) -> tuple[MergeRecord, ...]:
        """Fold adapters (all, without names) into the live weights, and report what that did to each tensor.

        The weights become round_once(W + all merged adapters), from the pristine W, whatever was merged before.

        Args:
            names: adapters to merge.
            irreversible: required with `keep="none"`, where the originals are given up.

        Raises:
            StateError: already merged; NaN or inf in an adapter; a weight that would overflow. Nothing has changed then.
            DriftError: a weight was changed by somebody else.
        """
        chosen = set(self._choose(names))
        if chosen & self._merged:
            raise StateError(f"{_list(chosen & self._merged)} is already merged", hint="op.unmerge() takes it out")
        if self.keep == "none" and not irreversible:
            raise StateError(
                "keep='none' gives up the originals: this merge cannot be undone",
                hint="say op.merge(irreversible=True), or operate with keep='ram' or keep='disk'",
            )
        return self._set_merged(self._merged | chosen)

    def unmerge(self, *names: str) -> None:
        """Take adapters (all merged ones, without names) out of the live weights; the last one out leaves W itself.

        Raises:
            StateError: not merged, or the originals were not kept.
            DriftError: a weight was changed by somebody else. Nothing has changed then.
        """
        chosen = set(self._choose(names)) if names else set(self._merged)
        if not chosen or chosen - self._merged:
            missing = _list(chosen - self._merged) or "nothing"
            raise StateError(f"{missing} is not merged" if chosen else "nothing is merged", hint="op.merge() merges")
        self._set_merged(self._merged - chosen)

    def _set_merged(self, target: frozenset[str]) -> tuple[MergeRecord, ...]:
        self._must_be_open()
        changed = target ^ self._merged
        affected = [s for s in self._slots.values() if any(m.adapter_name in changed for m in s.members)]
        self._must_not_mix(target)
        for slot in affected:
            slot.check()
        records, changes = [], []
        for slot in affected:
            if slot.chain(target):
                value, record = merged_value(slot, target)
                original = slot.original or self._keeper.keep(slot.name, slot.live.detach())
                records.append(record)
            else:
                value, original = slot.pristine(), None
            changes.append((slot, value, original, checksum(value)))
        self._commit_changes(changes, target)
        if self.keep == "none" and target:
            self._committed = True
        return tuple(records)

    def _commit_changes(
        self, changes: list[tuple[Slot, torch.Tensor, Original | None, int]], target: frozenset[str]
    ) -> None:
        """Swap pointers: nothing in here computes, and an interruption takes back what was swapped."""
        swaps = Ledger()
        with swaps.all_or_nothing():
            for slot, value, original, expected in changes:
                _record_slot(swaps, slot)
                _point(slot, value, original)
                slot.original, slot.expected = original, expected
            before = self._merged

            def restore() -> None:
                self._merged = before
                self._refresh()

            swaps.act(lambda: None, restore)
            self._merged = target
            self._refresh()

    def _must_not_mix(self, target: frozenset[str]) -> None:
        if self.keep == "ram":
            return
        for slot in self._slots.values():
            folding = {m.adapter_name for m in slot.members if m.folds} - target
            if slot.chain(target) and folding:
                raise StateError(
                    f"{slot.name} cannot hold a merge while {_list(folding)} replaces it on the fly (keep: {self.keep})",
                    hint="merge both, or operate with keep='ram'",
                )

    # Other states

    @contextmanager
    def disabled(self, *names: str) -> Iterator[None]:
        """Within the block the model computes without these adapters; without names, it is the pristine model.

        Merged weights are put aside and come back, bit for bit, when the block ends.
        """
        self._must_be_open()
        chosen = frozenset(self._choose(names))
        before = self._disabled
        with ExitStack() as stack:
            aside = chosen & self._merged
            if aside:
                target = self._merged - aside
                merged = self._merged
                self._set_merged(target)
                stack.callback(self._remerge, merged)
            self._disabled = before | chosen
            self._suspended += 1
            self._refresh()
            try:
                yield
            finally:
                self._suspended -= 1
                self._disabled = before
                self._refresh()

    def _remerge(self, merged: frozenset[str]) -> None:
        self._set_merged(merged)

    def probe(self, *args: Any, **kwargs: Any) -> dict[str, int]:
        """Run the model once and return site key -> number of uses; a site that is never used is an error.

        Args:
            args, kwargs: what the model is called with; a single mapping is passed as keyword arguments.

        Raises:
            StateError: sites whose adapters were not used (all of them named), or nothing is active.
        """
        self._must_be_open()
        active = [b for name in self.names if name not in self._merged | self._disabled for b in self._built[name]]
        if not active:
            raise StateError("no adapter is active", hint="unmerge or add one before probing")
        return probing.probe(self.model, active, args, kwargs)

    # The end

    def commit(self) -> None:
        """Leave the model as it is when the `with` block ends. `undo` stays possible by hand."""
        self._committed = True

    def undo(self) -> None:
        """Give back the model as it was: bits, keys, classes, identities, `requires_grad`.

        Raises:
            DriftError: somebody else changed a class, a pointer or a bit; nothing has been touched then.
            StateError: the originals were not kept.
        """
        if self._over:
            return
        if self._suspended:
            raise StateError("cannot undo inside disabled()", hint="leave the block first")
        self._check_hosts()
        for slot in self._slots.values():
            slot.check()
        if self._merged:
            self._set_merged(frozenset())
        self._ledger.undo()
        self._over = True

    def finalize(self) -> nn.Module:
        """Merge everything for good and return the plain model: no adapter, no swapped class, originals let go.

        Use it to hand the tuned model to code that knows nothing of surgery, `save_pretrained` included.
        """
        self._must_be_open()
        self._check_hosts()
        pending = set(self.names) - self._merged
        if pending:
            self.merge(*sorted(pending), irreversible=True)
        kept = [(slot, owner, owner.module._parameters[owner.parameter]) for slot in self._slots.values() for owner in slot.owners]
        self._ledger.undo()
        for _, owner, parameter in kept:
            owner.module._parameters[owner.parameter] = parameter
        self._over = True
        return self.model

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            self.undo()

    # Files

    def save(self, folder: str | Path, name: str | None = None) -> Path:
        """Write one adapter as a folder: tensors, spec, plan hash, plugins, fingerprint of the base. All or nothing.

        Raises:
            CheckpointError: the folder exists and is not empty, or cannot be written.
        """
        from surgery.operation.store import save_adapter

        self._must_be_open()
        return save_adapter(self, Path(folder), self._one(name))

    def load(self, folder: str | Path, name: str | None = None) -> None:
        """Load the tensors of a saved adapter of the same plan into the running one, strictly.

        Raises:
            CheckpointError: another plan, another base, a missing or an extra tensor.
        """
        from surgery.operation.store import load_tensors

        self._must_be_open()
        load_tensors(self, Path(folder), self._one(name))

    # Inside

    def _choose(self, names: Iterable[str]) -> tuple[str, ...]:
        chosen = tuple(names) or self.names
        for name in chosen:
            if name not in self._plans:
                raise StateError(f"no adapter is called {name!r}", hint=nearest(name, self._plans))
        return chosen

    def _one(self, name: str | None) -> str:
        if name is not None:
            return self._choose((name,))[0]
        if len(self._plans) != 1:
            raise StateError("which adapter?", hint="name one of " + ", ".join(self.names))
        return next(iter(self._plans))

    def _tensors(self, names: Iterable[str]) -> Iterator[tuple[str, nn.Parameter, Edit]]:
        for name in names:
            for built in self._built[name]:
                yield from tensor_names(name, built)

    def _must_be_open(self) -> None:
        if self._over:
            raise StateError("the operation is over", hint="operate again")
        if self._suspended:
            raise StateError("not possible inside disabled()", hint="leave the block first")

    def _check_hosts(self) -> None:
        for slot in self._slots.values():
            for owner in slot.owners:
                if not is_operated(owner.module) or not hasattr(type(owner.module), "_surgery_recipe"):
                    raise DriftError(
                        f"the class or the {STATE_CHILD!r} child of {owner.path} was replaced",
                        hint="put it back, or load the base again",
                    )

    def _refresh(self) -> None:
        """Tell every host what is active now. Idempotent."""
        hidden = self._merged | self._disabled
        for slot in self._slots.values():
            active = [m for m in slot.members if m.adapter_name not in hidden]
            folding = {m.adapter_name for m in active if m.folds}
            chain = slot.chain(folding | self._merged if folding else ())
            for owner in slot.owners:
                state = owner.state
                state.overrides = {**state.overrides, owner.parameter: chain}
                state.pristine.pop(owner.parameter, None)
                if chain and slot.original is not None:
                    state.pristine[owner.parameter] = slot.pristine()
        groups: dict[int, dict[tuple[str, str], list[Any]]] = {}
        for name in self.names:
            if name in hidden:
                continue
            for built in self._built[name]:
                if not built.folds:
                    state = self._host_state(built)
                    key = (name, built.edit.adapter)
                    groups.setdefault(id(state), {}).setdefault(key, []).append(built.adapter)
        for built in (b for many in self._built.values() for b in many):
            state = self._host_state(built)
            state.activations = tuple(tuple(group) for _, group in sorted(groups.get(id(state), {}).items()))

    def _host_state(self, built: Built) -> Any:
        return self._hosts[built.edit.site.path]

    _hosts: Mapping[str, Any] = {}


def tensor_names(name: str, built: Built) -> Iterator[tuple[str, nn.Parameter, Edit]]:
    """Yield (full name in the model, parameter, edit) for every trainable tensor of one built edit."""
    from surgery.operation.attach import slot_key

    site = built.edit.site
    prefix = f"{site.path}." if site.path else ""
    for local, parameter in built.adapter.named_parameters():
        yield f"{prefix}{STATE_CHILD}.adapters.{name}.{slot_key(built.edit)}.{local}", parameter, built.edit


def _point(slot: Slot, value: torch.Tensor, original: Original | None) -> None:
    """Make `value` live: in the same Parameter object, or in a new one where a tied name is cut off."""
    if not slot.is_cut:
        slot.live.data = value
        return
    parameter = slot.parameter if original is None else nn.Parameter(value, requires_grad=False)
    for owner in slot.owners:
        owner.module._parameters[owner.parameter] = parameter


def _record_slot(ledger: Ledger, slot: Slot) -> None:
    live, data, original, expected = slot.live, slot.live.data, slot.original, slot.expected

    def restore() -> None:
        live.data = data
        for owner in slot.owners:
            owner.module._parameters[owner.parameter] = live
        slot.original, slot.expected = original, expected

    ledger.act(lambda: None, restore)


def _list(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


Inverse = Callable[[], None]
