"""From an inventory and an architecture to sites: every parameter gets its role, fused ones are cut into parts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from surgery.architecture import Architecture, Part, Site, Slice
from surgery.architecture.architecture import Paths
from surgery.architecture.roles import OTHER
from surgery.errors import PlanError
from surgery.planning.inventory import Inventory, ParameterEntry

__all__ = ["sites_of"]


@dataclass(frozen=True, slots=True)
class _Place:
    role: str
    slice: Slice | None


def sites_of(inventory: Inventory, architecture: Architecture | None) -> tuple[Site, ...]:
    """Return every site of the model in module order. Without an architecture all roles are `other.<path>`."""
    anatomy = _Anatomy(architecture, inventory)
    return tuple(site for entry in inventory.entries for site in anatomy.sites(entry))


class _Anatomy:
    """An architecture's patterns, indexed for lookup by name."""

    def __init__(self, architecture: Architecture | None, inventory: Inventory) -> None:
        self._ties = inventory.ties
        self._conv1d = architecture is not None and architecture.conv1d
        self._roles = _index(architecture.roles if architecture else {})
        self._heads = _index(architecture.heads if architecture else {})
        bases = (architecture.base,) if architecture and isinstance(architecture.base, str) else ()
        for base in bases or (architecture.base if architecture else ()):
            if base and any(entry.name.startswith(f"{base}.") for entry in inventory.entries):
                self._base = f"{base}."
                break
        else:
            self._base = ""  # the bare base model
        self._stacks = [
            (stack, re.compile(re.escape(path) + r"\.(\d+)\.(.+)"))
            for stack, path in (architecture.stacks if architecture else {}).items()
        ]

    def sites(self, entry: ParameterEntry) -> Iterator[Site]:
        stack, layer, places = self._look_up(entry)
        if not places:
            places = [_Place(f"{OTHER}{entry.path or entry.parameter}", None)]
        for place in places:
            part = _part(entry, place.slice) if place.slice else None
            shape = entry.shape
            if part is not None:
                shape = (*shape[: part.axis], part.size, *shape[part.axis + 1 :])
            yield Site(
                role=place.role,
                stack=stack,
                layer=layer,
                path=entry.path,
                parameter=entry.parameter,
                shape=shape,
                dtype=entry.dtype,
                host=entry.host or self._guess_host(entry, place.role, layer),
                slice=part,
                tied=self._ties.get(entry.name, ()),
            )

    def _look_up(self, entry: ParameterEntry) -> tuple[str, int | None, list[_Place]]:
        if entry.name.startswith(self._base):
            relative = entry.name.removeprefix(self._base)
            for stack, pattern in self._stacks:
                match = pattern.fullmatch(relative)
                if match:
                    return stack, int(match[1]), _find(self._roles, f"*.{match[2]}")
            places = _find(self._roles, relative)
            if places:
                return "", None, places
        return "", None, _find(self._heads, entry.name)

    def _guess_host(self, entry: ParameterEntry, role: str, layer: int | None) -> str:
        """What holds a tensor of which only a file header is known."""
        if role in ("embedding.token", "embedding.position", "embedding.token_type"):
            return "embedding"
        if role.startswith("norm."):
            return "norm"
        if role.startswith(OTHER) and len(entry.shape) != 2:
            return "other"
        return "conv1d" if self._conv1d and layer is not None else "linear"


def _index(roles: Mapping[str, Paths]) -> dict[str, list[_Place]]:
    index: dict[str, list[_Place]] = {}
    for role, paths in roles.items():
        for path in paths if isinstance(paths, tuple) else (paths,):
            cut = path if isinstance(path, Slice) else None
            index.setdefault(path.path if isinstance(path, Slice) else path, []).append(_Place(role, cut))
    return index


def _find(index: Mapping[str, list[_Place]], name: str) -> list[_Place]:
    """Look up a parameter's own name first, then its module's."""
    return index.get(name) or index.get(name.rpartition(".")[0], [])


def _part(entry: ParameterEntry, cut: Slice) -> Part:
    axis = cut.axis if len(entry.shape) > 1 else 0
    extent = entry.shape[axis] if axis < len(entry.shape) else 0
    view = list(cut.view)
    if view.count(-1) == 1:
        known = math.prod(size for size in view if size != -1)
        view[view.index(-1)] = extent // known if known else 0
    along = view[cut.dim] if 0 <= cut.dim < len(view) else 0
    fits = extent > 0 and min(view) > 0 and math.prod(view) == extent
    if not fits or not 0 <= cut.start < cut.start + cut.length <= along:
        raise PlanError(
            f"axis {axis} has {extent} entries and cannot be seen as {tuple(cut.view)}",
            entry.name,
            "the architecture plugin describes another layout than this model's",
        )
    return Part(axis, tuple(view), cut.dim, cut.start, cut.length)
