"""Adapters that surgery has saved, on a checkpoint: replanned from headers, and refused unless the plan is the same."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from surgery.adapter import Adapter
from surgery.architecture import Site
from surgery.checkpoint.digest import sha256_of
from surgery.checkpoint.prefixes import aligned
from surgery.checkpoint.saved import Acts, Factor, SavedAdapter, TensorFile
from surgery.checkpoint.weights import Weights
from surgery.errors import CheckpointError, StateError, nearest
from surgery.operation.attach import alike_everywhere, site_seed
from surgery.operation.blame import ORIGIN
from surgery.operation.change import Step, steps_of
from surgery.operation.fold import canonical_view
from surgery.operation.store import (
    CONFIG_FILE,
    TENSOR_FILE,
    read_config,
    refuse_missing_plugins,
    refuse_other_plan,
)
from surgery.planning import Edit, Plan
from surgery.registry import Registry

__all__ = ["NativeAdapter"]

_BUILDING = threading.RLock()
"""Building sets what the whole process shares; and it may read a base that other adapters have to be taken out of."""
_KNOWN_FORWARDS = frozenset({"linear", "conv1d", "embedding"})


class _NativeActs(Acts):
    def __init__(self, saved: NativeAdapter, adapter: Adapter, edit: Edit, site: Site, *, is_portable: bool) -> None:
        self.is_portable = is_portable
        self.link, self._parameter, self._factor = (adapter, site), site.parameter, saved.factor
        acts_on_output = (
            type(adapter).activates
            and edit.site.host in _KNOWN_FORWARDS
            and edit.site.parameter == "weight"
            and edit.tied != "share"
        )
        self.order = (acts_on_output, saved.name, site.key)

    def steps(self, index: int, shape: tuple[int, int]) -> Sequence[Step] | None:
        assert self.link is not None
        return steps_of(self._parameter, [self.link], index, shape, [self._factor])


class NativeAdapter(SavedAdapter):
    """A folder that `op.save` or `surgery train` wrote."""

    format = "surgery"

    def __init__(self, folder: Path, name: str, factor: Factor, registry: Registry) -> None:
        super().__init__(folder, name, factor)
        self._config, self._spec = read_config(folder)
        refuse_missing_plugins(self._config, registry, folder)
        self._registry = registry
        self._tensors = TensorFile(folder / TENSOR_FILE)
        if self._tensors.sha256 != self._config["tensors_sha256"]:
            raise CheckpointError(
                f"the tensors are not those that {CONFIG_FILE} was written with",
                str(folder / TENSOR_FILE),
                "get the folder anew",
            )
        self.sums = {CONFIG_FILE: sha256_of(folder / CONFIG_FILE), TENSOR_FILE: self._tensors.sha256}
        self.digest = f"{self._config['plan_hash']}{self._tensors.sha256}"
        self._edits: dict[str, list[tuple[Edit, Site]]] = defaultdict(list)
        self._fingerprint: dict[str, str] = {}
        self._stored: dict[str, str] = {}
        self._plan: Plan | None = None

    @property
    def files(self) -> Mapping[str, Path]:
        return {name: self.folder / name for name in (CONFIG_FILE, TENSOR_FILE)}

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return self._fingerprint

    @property
    def changed(self) -> frozenset[str]:
        return frozenset(self._edits)

    def fit(self, weights: Weights) -> None:
        where = str(self.folder)
        names = self._names(weights)
        decided = weights.plan(self._spec, names)
        refuse_other_plan(self._config, decided, self.folder)
        self._plan, ours = decided, {theirs: own for own, theirs in names.items()}
        homes = set()
        for edit in decided.edits:
            if edit.tied == "untie":
                raise CheckpointError(
                    f"the adapter cuts {edit.site.name} off its tie, which needs a tensor that the base has not",
                    where,
                    "load the base, surgery.load_adapter(...).finalize(), and save_pretrained()",
                )
            for site in edit.sites:
                stored = weights.stored_name(ours[site.name])
                assert stored is not None
                self._edits[stored].append((edit, site))
                self._stored[site.name] = stored
            homes.add(edit.site.key)
        extra = sorted(key for key in self._tensors.headers if key.rpartition("/")[0] not in homes)
        if extra:
            what = f"the tensor {extra[0]!r} (and {len(extra) - 1} more) has no home in the base"
            raise CheckpointError(what, where, nearest(extra[0].rpartition("/")[0], homes))
        self._refuse_not_finite(weights)

    def _names(self, weights: Weights) -> dict[str, str]:
        """Return name in the files -> name in the adapter's base, for what that base holds; refuse another base."""
        theirs: Mapping[str, Mapping[str, Any]] = self._config["base"]
        entries = {entry.name: entry for entry in weights.inventory.entries}
        names = aligned(list(entries), theirs)
        missing = sorted(set(theirs) - set(names.values()), key=lambda name: (theirs[name]["sha256"] is not None, name))
        if missing:
            hint = nearest(missing[0], entries)
            if not names:
                hint = "this adapter was trained on another base: name that one"
            if theirs[missing[0]]["sha256"] is None:
                hint = "it was made for the task in training: merge into a base that holds it, "
                hint += "AutoModelFor....from_pretrained(BASE, num_labels=N).save_pretrained(DIR), and train on DIR"
            raise CheckpointError(f"the base lacks {missing[0]!r}", f"{weights.folder} for {self.folder}", hint)
        for own, name in names.items():
            entry, saved = entries[own], theirs[name]
            if list(entry.shape) != saved["shape"] or entry.dtype != saved["dtype"]:
                raise CheckpointError(
                    f"{name} is {entry.dtype} {list(entry.shape)}; the adapter's base had {saved['dtype']} "
                    f"{saved['shape']}",
                    str(self.folder),
                    "this adapter was trained on another base: name that one",
                )
            stored = weights.stored_name(own)
            if stored is not None and isinstance(saved["sha256"], str):
                self._fingerprint[stored] = saved["sha256"]
        aliases = {other for own in names for other in weights.inventory.ties.get(own, ()) if other not in names}
        return names | {alias: alias for alias in aliases}

    def _refuse_not_finite(self, weights: Weights) -> None:
        """Only what replaces a tensor that itself holds NaN or inf may hold them."""
        for key in sorted(self._tensors.not_finite):
            site_key, local = key.rpartition("/")[::2]
            kind = next(edit for edit in self._plan.edits if edit.site.key == site_key) if self._plan else None
            assert kind is not None
            adapter = self._build(kind, _Cut(kind))
            if not type(adapter).replaces:
                what = f"the adapter's tensor {local!r} holds NaN or inf"
                raise StateError(what, f"{self.folder}: {site_key}", "nothing was merged")

    def acts(self, parameter: str, base: Mapping[str, torch.Tensor] | None) -> list[Acts]:
        found: list[Acts] = []
        for edit, site in self._edits[parameter]:
            cut = _Cut(edit, self._stored, base)
            found.append(_NativeActs(self, self._load(edit, cut), edit, site, is_portable=not cut.was_read))
        return found

    def _load(self, edit: Edit, pristine: Mapping[str, torch.Tensor]) -> Adapter:
        adapter = self._build(edit, pristine)
        made = {f"{edit.site.key}/{local}": parameter for local, parameter in adapter.named_parameters()}
        saved = {key: header for key, header in self._tensors.headers.items() if key.startswith(f"{edit.site.key}/")}
        for key in sorted(made.keys() | saved.keys()):
            if key not in made or key not in saved:
                raise self._changed_since(f"the tensor {key!r} is {'missing' if key in made else 'extra'}", edit)
            target, header = made[key], saved[key]
            dtype = str(target.dtype).removeprefix("torch.")
            if header.shape != tuple(target.shape) or header.dtype != dtype:
                what = f"the tensor {key!r} is {header.dtype} {list(header.shape)}, and build makes {dtype} "
                raise self._changed_since(what + str(list(target.shape)), edit)
            target.data = self._tensors.read(key)
        return adapter.eval()

    def _changed_since(self, what: str, edit: Edit) -> CheckpointError:
        """The file is the one that was saved (its sha256 says so), and the adapter type makes other tensors now."""
        origin = self._registry.origin("adapter", edit.adapter)
        hint = f"install the version of {origin} that it was saved with, or get the folder anew"
        return CheckpointError(what, str(self._tensors.path), hint)

    def _build(self, edit: Edit, pristine: Mapping[str, torch.Tensor]) -> Adapter:
        assert self._plan is not None
        generator = torch.Generator().manual_seed(site_seed(self._plan.spec.seed, edit.site.key))
        kind = self._registry.adapter(edit.adapter)
        try:
            with _BUILDING, alike_everywhere():
                torch.default_generator.seed()  # what draws from it must not seem to be the same again
                adapter = kind.build(edit.site, edit.options, pristine, generator)
        except Exception as error:
            what = f"build failed: {type(error).__name__}: {error}"
            raise self._registry.failure("adapter", edit.adapter, what, edit.site.key) from error
        if not isinstance(adapter, Adapter):
            what = f"build must return an Adapter, not {type(adapter).__name__}"
            raise self._registry.failure("adapter", edit.adapter, what, edit.site.key)
        vars(adapter)[ORIGIN] = self._registry.origin("adapter", edit.adapter)
        return adapter.requires_grad_(False)


class _Cut(Mapping[str, torch.Tensor]):
    """The base's tensors of one edit, cut and turned as adapters see them; each look-up reads.

    Without a base zeros stand for it.

    Attributes:
        was_read: whether anything was looked up.
    """

    def __init__(
        self, edit: Edit, stored: Mapping[str, str] | None = None, base: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        self._sites, self._stored, self._base = {site.parameter: site for site in edit.sites}, stored, base
        self.was_read = False

    def __getitem__(self, name: str) -> torch.Tensor:
        site = self._sites[name]
        self.was_read = True
        if self._base is None or self._stored is None:
            tensor = torch.zeros(site.shape, dtype=getattr(torch, site.dtype))
            return tensor.mT if site.is_transposed else tensor
        tensor = self._base[self._stored[site.name]]
        return canonical_view(tensor, site).clone(memory_format=torch.preserve_format)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)
