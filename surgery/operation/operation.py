"""An operation: a model with adapters on it, and every way forward and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn

from surgery.architecture import Site
from surgery.errors import StateError, nearest
from surgery.operation.add import add_plan, remove_name
from surgery.operation.body import Body
from surgery.operation.ledger import Ledger
from surgery.operation.merge import MergeRecord
from surgery.operation.probe import probe_model
from surgery.planning import Plan
from surgery.registry import Registry

__all__ = ["Operation"]


class Operation:
    """What `operate` returns: the one handle on an operated model.

    As a context manager it undoes everything when the block ends, bit for bit, unless `commit` was called.
    """

    def __init__(self, body: Body, registry: Registry) -> None:
        self._body = body
        self._registry = registry
        self._is_committed = False
        self._is_over = False
        self._is_leaving = False
        self._suspended = 0

    def __repr__(self) -> str:
        state = "over" if self._is_over else ", ".join(map(self._described, self.names)) or "no adapter"
        return f"<Operation on {type(self.model).__name__}: {state}>"

    def _described(self, name: str) -> str:
        marks = [*(["merged"] if name in self.merged else []), *(["disabled"] if name in self._body.disabled else [])]
        return f"{name} ({', '.join(marks)})" if marks else name

    @property
    def model(self) -> nn.Module:
        """The operated model, the very object that was given."""
        return self._body.model

    @property
    def body(self) -> Body:
        """The inner state, for the modules of this layer."""
        return self._body

    @property
    def registry(self) -> Registry:
        """The plugins that the operation was made with."""
        return self._registry

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters on the model, sorted."""
        return tuple(sorted(self._body.plans))

    @property
    def merged(self) -> frozenset[str]:
        """Names of the adapters that are folded into the live weights."""
        return self._body.merged

    def plan(self, name: str | None = None) -> Plan:
        """Return the plan of one adapter (of the only one, without a name)."""
        return self._body.plans[self._one(name)]

    def trainable(self, *names: str) -> dict[str, nn.Parameter]:
        """Return every trainable tensor by its full name in the model: what may reach an optimizer, and nothing else.

        Raises:
            StateError: an adapter is merged, so that training it would change nothing.
        """
        chosen = self._choose(names)
        stuck = self.merged.intersection(chosen)
        if stuck:
            raise StateError(
                f"{_list(stuck)} is merged: training it would not change what the model computes",
                hint="op.unmerge() first",
            )
        return {name: parameter for name, parameter, _ in self._body.tensors(chosen)}

    def trainable_sites(self, *names: str) -> dict[str, Site]:
        """Return, for every name that `trainable` gives, the site that it adapts."""
        return {name: edit.site for name, _, edit in self._body.tensors(self._choose(names))}

    def add(self, plan: Plan, name: str) -> None:
        """Put one more adapter on the model, under a name of its own. All or nothing."""
        self._must_be_open("adding an adapter")
        add_plan(self._body, plan, name, self._registry, is_first=False)

    def remove(self, name: str) -> None:
        """Take one adapter off the model, unmerging it first where it is merged."""
        self._must_be_open("removing an adapter")
        self._choose((name,))
        if name in self.merged:
            self.unmerge(name)
        remove_name(self._body, name)

    def merge(self, *names: str, irreversible: bool = False) -> tuple[MergeRecord, ...]:
        """Fold adapters (all, without names) into the live weights, and report what that did to each tensor.

        The weights become round_once(W + all merged adapters), from the pristine W, whatever was merged before.

        Args:
            names: adapters to merge.
            irreversible: required with `keep="none"`, where the originals are given up.

        Raises:
            StateError: already merged; NaN or inf in an adapter; a weight that would overflow. Nothing has changed.
            DriftError: a weight was changed by somebody else. Nothing has changed.
        """
        self._must_be_open("merging")
        chosen = frozenset(self._choose(names))
        if chosen & self.merged:
            raise StateError(f"{_list(chosen & self.merged)} is already merged", hint="op.unmerge() takes it out")
        if self._body.keeper.policy == "none" and not irreversible:
            raise StateError(
                "keep='none' gives up the originals: this merge cannot be undone",
                hint="say op.merge(irreversible=True), or operate with another keep",
            )
        records = self._body.set_merged(self.merged | chosen)
        self._is_committed = self._is_committed or self._body.keeper.policy == "none"
        return records

    def unmerge(self, *names: str) -> None:
        """Take adapters (all merged ones, without names) out of the live weights; the last one out leaves W itself.

        Raises:
            StateError: not merged, or the originals were not kept.
            DriftError: a weight was changed by somebody else. Nothing has changed.
        """
        self._must_be_open("unmerging")
        chosen = frozenset(self._choose(names)) if names else self.merged
        if not chosen:
            raise StateError("nothing is merged", hint="op.merge() merges")
        if chosen - self.merged:
            raise StateError(
                f"{_list(chosen - self.merged)} is not merged", hint=f"merged: {_list(self.merged) or '-'}"
            )
        self._body.set_merged(self.merged - chosen)

    @contextmanager
    def disabled(self, *names: str) -> Iterator[None]:
        """Within the block the model computes without these adapters; without names, it is the pristine model.

        Merged weights are put aside and come back by pointer when the block ends.
        """
        self._must_be_open()
        chosen = frozenset(self._choose(names))
        body, before, suspended = self._body, self._body.disabled, self._suspended
        body.check_hosts()
        aside = Ledger()

        def tell() -> None:
            body.disabled = before
            body.refresh()

        def resume() -> None:
            aside.undo()
            self._suspended = suspended

        try:
            # The first inverse runs last, when the merged weights are back.
            aside.act(lambda: None, tell)
            self._suspended = suspended + 1
            if chosen & body.merged:
                body.remember(aside, body.slots.values())
                body.set_merged(body.merged - chosen)
            body.disabled = before | chosen
            body.refresh()
            yield
        finally:
            try:
                resume()
            except BaseException:  # Ctrl-C: what was interrupted can be repeated
                resume()
                raise

    def probe(self, *args: Any, **kwargs: Any) -> dict[str, int]:
        """Run the model once and return site key -> number of uses; a site that is never used is an error.

        Args:
            args, kwargs: what the model is called with; a single mapping is passed as keyword arguments.

        Raises:
            StateError: sites whose adapters were not used (all of them named), or nothing is active.
        """
        self._must_be_open()
        hidden = self.merged | self._body.disabled
        active = [built for name in self.names if name not in hidden for built in self._body.built[name]]
        if not active:
            raise StateError("no adapter is active", hint="unmerge or add one before probing")
        return probe_model(self._body, active, args, kwargs)

    def commit(self) -> None:
        """Leave the model as it is when the `with` block ends. `undo` stays possible by hand."""
        self._is_committed = True

    def undo(self) -> None:
        """Give back the model as it was: bits, keys, classes, identities, `requires_grad`.

        Raises:
            DriftError: somebody else changed a class, a pointer or a bit; nothing has been touched then.
            StateError: the originals were not kept.
        """
        if self._is_over:
            return
        if self._is_leaving:  # a first attempt was interrupted
            self._leave()
            return
        if self._suspended:
            raise StateError("cannot undo inside disabled()", hint="leave the block first")
        self._body.refuse_shared("undoing")
        self._body.check()
        if self.merged:
            self._body.set_merged(frozenset())
        self._leave()

    def _leave(self) -> None:
        """Run all inverses. They can be repeated, so Ctrl-C in between does not stop them half way."""
        self._is_leaving = True
        try:
            self._body.ledger.undo()
        except BaseException:
            self._body.ledger.undo()
            self._is_over = True
            raise
        self._is_over = True

    def finalize(self) -> nn.Module:
        """Merge everything for good and return the plain model: no adapter, no swapped class, originals let go.

        Use it to hand the tuned model to code that knows nothing of surgery, `save_pretrained` included. Where a name
        was cut off its tie (`tied: untie`) the configuration says `tie_word_embeddings=False` from now on, and what
        that setting ties besides becomes tensors of their own, as files of such a model must hold them.
        """
        self._must_be_open("merging")
        self._body.check()
        pending = [name for name in self.names if name not in self.merged]
        if pending:
            self.merge(*pending, irreversible=True)
        cut = [(slot.live, slot.parameter) for slot in self._body.slots.values() if slot.is_cut]
        loosened = self._body.loosened if cut else ()
        try:
            self._leave()
        finally:
            for parameter, original in cut:  # made frozen by the merge
                parameter.requires_grad = original.requires_grad
            for one in loosened:
                one.say()
                one.cut_the_rest(self.model)
        return self.model

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_committed:
            self.undo()

    def save(self, folder: str | Path, name: str | None = None, *, overwrite: bool = False) -> Path:
        """Write one adapter as a folder: tensors, spec, plan hash, plugins, fingerprint of the base. All or nothing.

        Args:
            folder: where; new or empty.
            name: which adapter; the only one, without a name.
            overwrite: the folder may hold an adapter, which is replaced when the new one is complete.

        Raises:
            CheckpointError: the folder exists and is not empty, or cannot be written.
            DriftError: somebody else changed the base, so that the adapter would load on no true one.
        """
        from surgery.operation.store import save_adapter

        self._must_be_open("saving")
        self._body.check()
        return save_adapter(self._body, self._registry, Path(folder), self._one(name), overwrite=overwrite)

    def load(self, folder: str | Path, name: str | None = None) -> None:
        """Load the tensors of a saved adapter of the same plan into the running one, strictly.

        Raises:
            CheckpointError: another plan, another base, a missing or an extra tensor.
            StateError: the adapter is merged.
        """
        from surgery.operation.store import load_tensors

        self._must_be_open("loading")
        chosen = self._one(name)
        if chosen in self.merged:
            raise StateError(f"{chosen!r} is merged", hint="op.unmerge() first")
        load_tensors(self._body, Path(folder), chosen)

    def _choose(self, names: Iterable[str]) -> tuple[str, ...]:
        chosen = tuple(names) or self.names
        for name in chosen:
            if name not in self._body.plans:
                raise StateError(f"no adapter is called {name!r}", hint=nearest(name, self._body.plans))
        return chosen

    def _one(self, name: str | None) -> str:
        if name is not None:
            return self._choose((name,))[0]
        if len(self.names) != 1:
            raise StateError("which adapter?", hint=f"name one of {_list(self.names) or '(none is left)'}")
        return self.names[0]

    def _must_be_open(self, act: str = "") -> None:
        """Raise StateError where nothing is possible any more, or `act`, which needs whole tensors, is not."""
        if self._is_over or self._is_leaving:
            raise StateError("the operation is over", hint="operate again")
        if self._suspended:
            raise StateError("not possible inside disabled()", hint="leave the block first")
        if act:
            self._body.refuse_shared(act)


def _list(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
