"""From an inventory and an architecture to sites: every parameter gets its role, fused ones are cut into parts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

from surgery.architecture import Architecture, Part, Site, Slice, When
from surgery.architecture.counts import Count, UnknownSettingError, count_of, setting
from surgery.architecture.roles import OTHER
from surgery.errors import PlanError, PluginError
from surgery.planning.inventory import Inventory, ParameterEntry

__all__ = ["plain_names", "sites_of"]

T = TypeVar("T")

_NOTHING = Architecture((), "", {}, {})

_MATRICES = ("attention.", "cross_attention.", "linear_attention.", "mlp.", "moe.", "ssm.")
"""Beginnings of roles whose 2-D parameters are matrices of linear maps, whatever module holds them."""

_INDEX = re.compile(r"(?<=\.)(?:(?:expert_)?\d+|[a-z]{2,3}_[A-Z]{2})(?=\.)")
"""An index of a list inside a layer; some call the modules of experts so, or those of languages."""

_TABLES = ("embedding.token", "embedding.position", "embedding.token_type", "embedding.relative")
"""Roles whose 2-D parameters are tables of rows that are looked up."""


@dataclass(frozen=True, slots=True)
class _Place:
    role: str
    slice: Slice | None
    beside: str = ""


_Index: TypeAlias = Mapping[str, Sequence[_Place]]


def sites_of(inventory: Inventory, architecture: Architecture | None) -> tuple[Site, ...]:
    """Return every site of the model in module order. Without an architecture all roles are `other.<path>`."""
    anatomy = _Anatomy(architecture or _NOTHING, inventory)
    return tuple(site for entry in inventory.entries for site in anatomy.sites(entry))


def plain_names(inventory: Inventory, architecture: Architecture | None) -> frozenset[str]:
    """Return the names of parameters of which all, or a part, has no role because `Architecture.plain` says so."""
    anatomy = _Anatomy(architecture or _NOTHING, inventory)
    return frozenset(entry.name for entry in inventory.entries if anatomy.plain(entry))


class _Anatomy:
    """An architecture's patterns, indexed for lookup by name."""

    def __init__(self, architecture: Architecture, inventory: Inventory) -> None:
        self._ties = inventory.ties
        self._architecture = architecture
        self._settings = inventory.settings
        self._roles = self._index(architecture.places(heads=False))
        self._heads = self._index(architecture.places(heads=True))
        plain = [place if isinstance(place, When) else When(place) for place in architecture.plain]
        self._plain = self._index((OTHER, when.path, when) for when in plain)
        self._uncalled = frozenset(
            path.path if isinstance(path, When) else path
            for path in architecture.uncalled
            if not isinstance(path, When) or self._holds(path.settings)
        )
        self._apart: set[tuple[tuple[str, ...], tuple[Part | None, ...]]] = set()
        names = [entry.name for entry in inventory.entries]
        self._base = next(
            (f"{base}." for base in architecture.bases if base and any(name.startswith(f"{base}.") for name in names)),
            "",  # the bare base model
        )
        self._stacks = [
            _Stack(stack, path, (name.removeprefix(self._base) for name in names))
            for stack, path in architecture.stacks.items()
        ]
        self._weights = {entry.path: entry.shape for entry in inventory.entries if entry.parameter == "weight"}
        self._present = self._take_stock(inventory.entries)

    def _index(self, places: Iterable[tuple[str, str | Slice, When]]) -> dict[str, list[_Place]]:
        index: dict[str, list[_Place]] = {}
        for role, path, when in places:
            if self._holds(when.settings):
                name, cut = (path.path, path) if isinstance(path, Slice) else (path, None)
                index.setdefault(name, []).append(_Place(role, cut, when.beside))
        return index

    def _holds(self, conditions: Mapping[str, Any]) -> bool:
        defaults = self._architecture.defaults
        return all(setting(name, self._settings, defaults) == value for name, value in conditions.items())

    def _take_stock(self, entries: Iterable[ParameterEntry]) -> set[tuple[str, int | None, str]]:
        """Which modules and parameters each layer has, of those that a place must be beside."""
        indices = (self._roles, self._heads, self._plain)
        wanted = {place.beside for index in indices for found in index.values() for place in found}
        present: set[tuple[str, int | None, str]] = set()
        for entry in entries if any(wanted) else ():
            stack, layer, relative = self._locate(entry)
            present.update((stack, layer, name) for name in wanted if f"{relative}.".startswith(f"{name}."))
        return present

    def sites(self, entry: ParameterEntry) -> Iterator[Site]:
        stack, layer, relative = self._locate(entry)
        other = f"{OTHER}{entry.path or entry.parameter}"
        places = self._places(entry, (self._roles, self._heads))
        places += [replace(place, role=other) for place in self.plain(entry)]
        unknown = () if places or entry.parameter.endswith("bias") else _look_up(self._architecture.open, relative)
        places = places or [_Place(other, None)]
        parts = [self._part(entry, place.role, place.slice) if place.slice else None for place in places]
        if len(places) > 1:
            self._refuse_overlaps(entry, [place.role for place in places], parts)
        for place, part in zip(places, parts, strict=True):
            shape = entry.shape
            if part is not None:
                shape = (*shape[: part.axis], part.size, *shape[part.axis + 1 :])
            is_called = (relative.rpartition(".")[0] if relative else entry.path) not in self._uncalled
            yield Site(
                role=place.role,
                stack=stack,
                layer=layer,
                path=entry.path,
                parameter=entry.parameter,
                shape=shape,
                dtype=entry.dtype,
                host=self._host(entry, place.role, layer, is_called),
                slice=part,
                tied=self._ties.get(entry.name, ()),
                open=tuple(unknown),
            )

    def _locate(self, entry: ParameterEntry) -> tuple[str, int | None, str]:
        """Return stack, layer and the name relative to the base model, `*.` for a layer; "" outside of the base."""
        if not entry.name.startswith(self._base):
            return "", None, ""
        relative = entry.name.removeprefix(self._base)
        for stack in self._stacks:
            found = stack.find(relative)
            if found is not None:
                return stack.name, found[0], f"*.{found[1]}"
        return "", None, relative

    def plain(self, entry: ParameterEntry) -> list[_Place]:
        """Return what of a parameter has no role of the vocabulary, knowingly."""
        return self._places(entry, (self._plain, self._plain)) if self._plain else []

    def _places(self, entry: ParameterEntry, tables: tuple[_Index, _Index]) -> list[_Place]:
        """Return what tables, of the base model and of the whole one, say of a parameter in its layer."""
        stack, layer, relative = self._locate(entry)
        places = self._find(tables[0], stack, relative) if relative else ()
        places = places or _look_up(tables[1], entry.name)
        return [place for place in places if not place.beside or (stack, layer, place.beside) in self._present]

    def _find(self, table: _Index, stack: str, relative: str) -> Sequence[_Place]:
        """Look up a name; where it is not described, with a star for each index: a list inside a layer."""
        starred = _INDEX.sub("*", relative)
        return self._find_exactly(table, stack, relative) or self._find_exactly(table, stack, starred)

    def _find_exactly(self, table: _Index, stack: str, relative: str) -> Sequence[_Place]:
        return (_look_up(table, f"{stack}:{relative}") if stack else ()) or _look_up(table, relative)

    def _host(self, entry: ParameterEntry, role: str, layer: int | None, is_called: bool) -> str:
        """What holds a tensor: what the model says, but for a matrix that no call of its module applies."""
        host = entry.host or self._guess_host(entry, role, layer)
        is_bias = entry.parameter.endswith("bias")
        if host in ("linear", "embedding") and not is_called:
            return "other" if is_bias else "matrix"
        if host == "other" and len(entry.shape) == 2 and role.startswith(_MATRICES) and not is_bias:
            return "matrix"
        if host == "other" and len(entry.shape) == 3 and role.startswith("moe.experts."):
            return "transposed-experts" if self._architecture.transposed_experts else "experts"
        return host

    def _guess_host(self, entry: ParameterEntry, role: str, layer: int | None) -> str:
        """What holds a tensor of which only a file header is known."""
        weight = self._weights.get(entry.path, ())
        is_called_norm = "norm" in entry.path.rpartition(".")[2].lower()
        if entry.parameter not in ("weight", "bias"):  # what torch's own modules call theirs
            return "norm" if is_called_norm and role.startswith("norm.") and len(entry.shape) == 1 else "other"
        if role in _TABLES and len(weight) == 2:
            return "embedding"
        if role.startswith("norm.") or (len(weight) == 1 and is_called_norm):
            return "norm"
        if len(weight) != 2:  # a convolution, or a bias that is no linear module's
            return "other"
        return "conv1d" if self._architecture.conv1d and layer is not None else "linear"

    def _refuse_overlaps(self, entry: ParameterEntry, roles: Sequence[str], parts: Sequence[Part | None]) -> None:
        """An element with two roles would be adapted twice."""
        key = (tuple(roles), tuple(parts))
        if key in self._apart:  # the layers of a stack are alike
            return
        if None in parts:
            raise self._twice(entry, roles[0], roles[1])
        owner: dict[int, str] = {}
        for position, (role, part) in enumerate(zip(roles, parts, strict=True)):
            for index in part.indices() if part else ():
                if index in owner or role in roles[:position]:
                    raise self._twice(entry, owner.get(index, role), role)
                owner[index] = role
        self._apart.add(key)

    def _twice(self, entry: ParameterEntry, first: str, second: str) -> PluginError:
        return PluginError(
            f"one weight, or one part of it, has two roles: {first} and {second}",
            f"architecture {'/'.join(self._architecture.types)}, {entry.name}",
            "give the parts slices that do not overlap",
        )

    def _part(self, entry: ParameterEntry, role: str, cut: Slice) -> Part:
        axis = cut.axis if len(entry.shape) > 1 else 0
        if len(entry.shape) == 2 and entry.parameter.endswith("bias"):  # (experts, fan_out)
            axis = 1
        if role.startswith("moe.experts.") and axis == 0 and len(entry.shape) == 3:
            raise PlanError(
                f"a slice on axis 0 gives {role} some of the experts, not a part of each",
                f"architecture {'/'.join(self._architecture.types)}, {entry.name}",
                "say which axis is fused in each: axis=1 of (experts, fan_out, fan_in), "
                "axis=2 of (experts, fan_in, fan_out)",
            )
        extent = entry.shape[axis] if axis < len(entry.shape) else 0
        view = [self._count(count, entry) for count in cut.view]
        start, length = self._count(cut.start, entry), self._count(cut.length, entry)
        if view.count(-1) == 1:
            known = math.prod(size for size in view if size != -1)
            view[view.index(-1)] = extent // known if known else 0
        along = view[cut.dim] if 0 <= cut.dim < len(view) else 0
        fits = extent > 0 and min(view) > 0 and math.prod(view) == extent
        if not fits or not 0 <= start < start + length <= along:
            seen = f"axis {axis} has {extent} entries and cannot be seen as {tuple(cut.view)}"
            beyond = f"dimension {cut.dim} of {tuple(view)} has no entries {start} to {start + length}"
            raise PlanError(
                beyond if fits else seen,
                f"architecture {'/'.join(self._architecture.types)}, {entry.name}",
                "the architecture plugin describes another layout than this model's",
            )
        return Part(axis, tuple(view), cut.dim, start, length)

    def _count(self, count: Count, entry: ParameterEntry) -> int:
        try:
            return count_of(count, self._settings, self._architecture.defaults)
        except UnknownSettingError as error:
            raise PlanError(
                f"the configuration does not say {error.name!r}, which the layout of a fused weight depends on",
                entry.name,
                "complete config.json, or plan from the model itself",
            ) from None
        except ZeroDivisionError:
            raise PlanError(f"the configuration makes {count!r} a division by zero", entry.name) from None


class _Stack:
    """One stack's layers by name. Lists in lists are counted through, in the order of their indices."""

    def __init__(self, name: str, path: str, names: Iterable[str]) -> None:
        self.name = name
        numbers = re.escape(path).replace(r"\*", r"(\d+)")
        self._pattern = re.compile((numbers + r"\." if path else "") + r"(\d+)\.(.+)")
        self._layers: dict[tuple[int, ...], int] | None = None
        if "*" in path:
            found = {match.groups()[:-1] for match in map(self._pattern.fullmatch, names) if match}
            indices = sorted(tuple(map(int, group)) for group in found)
            self._layers = {index: position for position, index in enumerate(indices)}

    def find(self, name: str) -> tuple[int, str] | None:
        """Return (layer, name inside the layer), or None."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        *numbers, inside = match.groups()
        index = tuple(map(int, numbers))
        return (index[0] if self._layers is None else self._layers[index]), inside


def _look_up(index: Mapping[str, Sequence[T]], name: str) -> Sequence[T]:
    """Look up a parameter's own name first, then its module's."""
    return index.get(name) or index.get(name.rpartition(".")[0], ())
