"""Layers that look alike stand once: rows grouped by layer, and equal layers put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from surgery.architecture import Site

__all__ = ["Group", "Place", "fold", "place", "ranges"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter stands.

    Attributes:
        stack: the stack of layers; what comes before the number where no stack is known; "" outside of layers.
        layer: the index; None outside of layers.
        parts: the full name, cut at its dots.
        star: which of the parts is the layer's index; None where none is.
    """

    stack: str
    layer: int | None
    parts: tuple[str, ...]
    star: int | None

    @property
    def name(self) -> str:
        """The full name with `*` for the index of the layer."""
        return ".".join("*" if index == self.star else part for index, part in enumerate(self.parts))

    @property
    def base(self) -> str:
        """The name up to the star, the star included; "" without one."""
        return "" if self.star is None else ".".join((*self.parts[: self.star], "*"))

    @property
    def inside(self) -> str:
        """The name behind the star; the full name without one."""
        return ".".join(self.parts) if self.star is None else ".".join(self.parts[self.star + 1 :])


def place(site: Site) -> Place:
    """Return where a site stands.

    Without an architecture the one number in a name counts as the layer, so that repeated blocks fold there too.
    """
    parts = tuple(site.name.split("."))
    if site.layer is not None:
        # A list inside of a layer may have the layer's own number: the layers' list comes first.
        index = str(site.layer)
        return Place(site.stack, site.layer, parts, parts.index(index) if index in parts else None)
    numbers = [number for number, part in enumerate(parts) if part.isdecimal() and part.isascii()]
    # 01 is the name of another module than 1.
    if not site.role.startswith("other.") or len(numbers) != 1 or str(int(parts[numbers[0]])) != parts[numbers[0]]:
        return Place("", None, parts, None)
    star = numbers[0]
    return Place(".".join(parts[:star]), int(parts[star]), parts, star)


@dataclass
class Group(Generic[T]):
    """Rows outside of layers (`layers` is None), or the rows that each of the layers has."""

    stack: str
    layers: list[int] | None
    rows: list[T] = field(default_factory=list)


def fold(rows: Iterable[tuple[Place, T]]) -> list[Group[T]]:
    """Group rows by layer, and put layers whose rows are equal into one group."""
    groups: list[Group[T]] = []
    by_layer: dict[tuple[str, int], Group[T]] = {}
    for where, row in rows:
        if where.layer is None:
            if not groups or groups[-1].layers is not None:
                groups.append(Group("", None))
            groups[-1].rows.append(row)
            continue
        key = (where.stack, where.layer)
        if key not in by_layer:
            by_layer[key] = Group(where.stack, [where.layer])
            groups.append(by_layer[key])
        by_layer[key].rows.append(row)
    folded: list[Group[T]] = []
    twins: dict[str, list[Group[T]]] = {}
    for group in groups:
        alike = twins.setdefault(group.stack, []) if group.layers is not None else []
        twin = next((old for old in alike if old.rows == group.rows), None)
        if twin is not None and twin.layers is not None and group.layers is not None:
            twin.layers += group.layers
        else:
            folded.append(group)
            alike.append(group)
    return folded


def ranges(indices: Sequence[int]) -> str:
    """Return `0-5, 7` for indices in any order."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and spans[-1][1] == index - 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
