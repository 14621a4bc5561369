"""Two checkpoints of one model, parameter by parameter, under the names that the model has for them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from surgery.architecture import Site
from surgery.checkpoint.prefixes import aligned
from surgery.checkpoint.source import Source
from surgery.checkpoint.units import units_of
from surgery.checkpoint.weights import Weights
from surgery.errors import CheckpointError, PlanError, Problem
from surgery.planning import Anatomy, anatomy, inventory
from surgery.planning.inventory import Inventory, ParameterEntry
from surgery.planning.sites import sites_of
from surgery.registry import Registry
from surgery.spectra.matrix import Matrix, cut

__all__ = ["CheckpointPair", "matrices_of_checkpoints"]

_SHOWN = 5


class CheckpointPair:
    """A base and what it was tuned to, open until the block is left; tensors are read when asked for.

    Parameters have the names of the model that the base's `config.json` speaks of, as it is when it is loaded; where
    that model cannot be built, or is not what the files hold, those of the files.

    Attributes:
        inventory: the base model's parameters.
        described: what is known of its architecture.
        lacking: names that the tuned checkpoint lacks.
        added: names that it has and the base has not.
        reshaped: names of parameters whose shapes differ.

    Raises:
        CheckpointError: a folder cannot be read, or the two are of different architectures.
    """

    def __init__(self, base: str | Path, tuned: str | Path, registry: Registry) -> None:
        self._stack = ExitStack()
        self._registry = registry
        self._base, self._tuned = (Weights(Path(one), registry) for one in (base, tuned))
        types = [str(one.config.get("model_type") or "") for one in (self._base, self._tuned)]
        if types[0] != types[1]:
            said = " and ".join(repr(one or "unknown") for one in types)
            hint = "name a base and a checkpoint that was tuned from it"
            raise CheckpointError(f"two architectures: {said}", f"{base} and {tuned}", hint)
        self.inventory, self._ours = self._named()
        self.described: Anatomy = anatomy(self.inventory, registry)
        known = {entry.name: entry for entry in self.inventory.entries}
        self._theirs = _found(self.inventory, {entry.name for entry in self._tuned.inventory.entries})
        shapes = {entry.name: entry.shape for entry in self._tuned.inventory.entries}
        self.lacking = tuple(sorted(set(known) - set(self._theirs)))
        met = set(self._theirs.values())
        ties = self._tuned.inventory.ties
        self.added = tuple(sorted(name for name in set(shapes) - met if met.isdisjoint(ties.get(name, ()))))
        self.reshaped = tuple(
            sorted(name for name, other in self._theirs.items() if known[name].shape != shapes[other])
        )
        if not self._theirs:
            what = f"no tensor of {tuned} has a name of {base}"
            raise CheckpointError(what, str(tuned), "name a base and a checkpoint that was tuned from it")

    def __enter__(self) -> Self:
        for one in (self._base, self._tuned):
            self._stack.enter_context(one)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def folder(self) -> Path:
        """The base's folder."""
        return self._base.folder

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every site of the base model."""
        return sites_of(self.inventory, self.described.architecture)

    @cached_property
    def parameters(self) -> tuple[ParameterEntry, ...]:
        """One entry for each tensor, under the first name that it has in the model."""
        seen: set[str] = set()
        found = []
        for entry in self.inventory.entries:
            if entry.name not in seen:
                found.append(entry)
                seen.update((entry.name, *self.inventory.ties.get(entry.name, ())))
        return tuple(found)

    def refuse_unequal(self, names: Collection[str]) -> None:
        """Raise CheckpointError where the tuned checkpoint lacks one of these, or has another shape for it."""
        where = str(self._tuned.folder)
        hint = "name a base and a checkpoint that was tuned from it"
        problems = [
            Problem(f"it has no {name!r}, which the base has", where, hint) for name in self.lacking if name in names
        ]
        shapes = {entry.name: list(entry.shape) for entry in self.inventory.entries}
        others = {entry.name: list(entry.shape) for entry in self._tuned.inventory.entries}
        problems += [
            Problem(f"{name} is {others[self._theirs[name]]} here and {shapes[name]} in the base", where, hint)
            for name in self.reshaped
            if name in names
        ]
        if len(problems) > _SHOWN:
            problems[_SHOWN:] = [Problem(f"and {len(problems) - _SHOWN} more", where)]
        if problems:
            raise CheckpointError.of(problems)

    def base(self, name: str) -> torch.Tensor:
        """Return a parameter of the base, as the model stores it."""
        return self._tensors[0][_stored(self._base, self._ours[name])]

    def tuned(self, name: str) -> torch.Tensor:
        """Return a parameter of the tuned checkpoint."""
        return self._tensors[1][_stored(self._tuned, self._theirs[name])]

    @cached_property
    def _tensors(self) -> tuple[Mapping[str, torch.Tensor], ...]:
        both = []
        for weights in (self._base, self._tuned):
            units = {unit.name: unit for unit in units_of(weights, (), ())}
            both.append(Source(weights).tensors(units))
        return tuple(both)

    def _named(self) -> tuple[Inventory, Mapping[str, str]]:
        """Return the inventory of the model, and name in it -> name in the base's files."""
        found = self._base.inventory
        entries = {entry.name: entry for entry in found.entries}
        try:
            model = inventory(self._base.folder / "config.json", self._registry) if self._base.config else None
        except (CheckpointError, PlanError):
            model = None  # a type that no installed library knows, or a configuration without sizes
        if model is not None:
            names = _found(model, entries)
            if all(e.name in names and entries[names[e.name]].shape == e.shape for e in model.entries):
                # A model that is built from its configuration does not have the dtype of the files.
                kept = tuple(replace(entry, dtype=entries[names[entry.name]].dtype) for entry in model.entries)
                return replace(model, entries=kept), names
        return found, {name: name for name in entries}


def _stored(weights: Weights, name: str) -> str:
    stored = weights.stored_name(name)
    assert stored is not None
    return stored


def _found(model: Inventory, theirs: Collection[str]) -> dict[str, str]:
    """Return name in the model -> name in files, of the tensor or of one that is tied to it."""
    names = aligned([entry.name for entry in model.entries], theirs)
    for name, others in model.ties.items():
        stored = next((names[other] for other in (name, *others) if other in names), None)
        if stored is not None:
            names.setdefault(name, stored)
    return names


def matrices_of_checkpoints(pair: CheckpointPair) -> Iterator[Matrix]:
    """Yield every matrix that both checkpoints hold, read one parameter at a time.

    Raises:
        StateError: NaN or inf in one of them.
    """
    matrices = [site for site in pair.sites if site.is_matrix or site.experts]
    left_out = {*pair.lacking, *pair.reshaped}
    for entry in pair.parameters:
        own = [site for site in matrices if site.name == entry.name and entry.name not in left_out]
        if own:
            base, tuned = pair.base(entry.name), pair.tuned(entry.name)
            for site in own:
                yield from cut(site, base, tuned)
