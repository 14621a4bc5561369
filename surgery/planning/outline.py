"""A model's anatomy as data: every row of the folded tree with its bytes, and where its role comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from surgery.architecture import Part, Site
from surgery.architecture.roles import OTHER
from surgery.planning.fold import Group, Place, fold, place
from surgery.planning.inventory import DTYPE_BYTES, Inventory
from surgery.planning.make import Anatomy
from surgery.planning.marks import Mark, marks
from surgery.planning.plan import Plan

__all__ = ["OpenRow", "Outline", "Row", "outline"]


@dataclass(frozen=True, slots=True)
class Row:
    """A site of one layer and those like it in the layers that look alike.

    Attributes:
        role: the canonical role; "" where it is `other.<path>`.
        base, inside: the name up to the layer's index, with `*` for it, and behind it; "" and the name outside.
        in_layers: whether `layers:` of a rule counts it.
        parameter: the parameter's name in its module.
        shape, dtype, host, slice, tied, open: as of the site.
        size, bytes: of the site.
        is_alias: whether the bytes are another name's already: the row's tensor is tied.
        mark: what a spec does to it.
    """

    role: str
    base: str
    inside: str
    in_layers: bool
    parameter: str
    shape: tuple[int, ...]
    dtype: str
    host: str
    slice: Part | None
    tied: tuple[str, ...]
    open: tuple[str, ...]
    size: int
    bytes: int
    is_alias: bool
    mark: Mark | None

    @property
    def counted(self) -> int:
        """Bytes, tied tensors counted once."""
        return 0 if self.is_alias else self.bytes


@dataclass(frozen=True, slots=True)
class OpenRow:
    """What may hold a role and nobody knows: the name with `*` for a layer, the roles, the reason or "", how often."""

    name: str
    roles: tuple[str, ...]
    why: str
    sites: int


@dataclass(frozen=True)
class Outline:
    """The folded tree.

    Attributes:
        inventory: what the model holds.
        provenance: where the roles come from, as of `Anatomy`.
        rows: one for each site.
        groups: rows outside of layers, and of layers that look alike.
        sources: role -> what it was inferred from; empty where a plugin declares roles.
        open: weights whose role or layout is not known.
        sites: all of them, in module order.
        plan: what was marked, if anything.
    """

    inventory: Inventory
    provenance: str
    rows: tuple[tuple[Place, Row], ...]
    groups: tuple[Group[Row], ...]
    sources: Mapping[str, str]
    open: tuple[OpenRow, ...]
    sites: tuple[Site, ...]
    plan: Plan | None = None

    def to_dict(self) -> dict[str, Any]:
        found = self.inventory
        return {
            "model": {
                "type": found.model_type or "",
                "class": found.class_name,
                "origin": found.origin,
                "architecture": self.provenance,
                "parameters": found.parameters,
                "bytes": found.bytes,
            },
            "groups": [
                {
                    "stack": group.stack,
                    "layers": group.layers,
                    "bytes": sum(row.counted for row in group.rows) * len(group.layers or (0,)),
                    "rows": [asdict(row) for row in group.rows],
                }
                for group in self.groups
            ],
            "sources": dict(self.sources),
            "open": [asdict(item) for item in self.open],
            "sites": [self._site(site, row) for site, (_, row) in zip(self.sites, self.rows, strict=True)],
            "spec": self.plan.to_dict() if self.plan else None,
        }

    def _site(self, site: Site, row: Row) -> dict[str, Any]:
        return {
            "name": site.name,
            **asdict(site),
            "bytes": row.bytes,
            "is_alias": row.is_alias,
            "source": self.sources.get(site.role, ""),
            "mark": asdict(row.mark) if row.mark else None,
        }


def outline(found: Inventory, sites: Sequence[Site], described: Anatomy, plan: Plan | None = None) -> Outline:
    """Return the outline of a model, with what `plan` does to it."""
    touched = marks(plan, sites) if plan else {}
    rows = []
    unknown: dict[tuple[str, str, tuple[str, ...]], int] = {}
    for site in sites:
        where = place(site)
        rows.append((where, _row(site, where, found, touched.get(site.key))))
        if site.open:
            key = (where.name, where.inside, site.open)
            unknown[key] = unknown.get(key, 0) + 1
    return Outline(
        inventory=found,
        provenance=described.provenance,
        rows=tuple(rows),
        groups=tuple(fold(rows)),
        sources=described.inference.sources if described.inference else {},
        open=tuple(
            OpenRow(name, roles, _why(inside, described), number) for (name, inside, roles), number in unknown.items()
        ),
        sites=tuple(sites),
        plan=plan,
    )


def _row(site: Site, where: Place, found: Inventory, mark: Mark | None) -> Row:
    return Row(
        role="" if site.role.startswith(OTHER) else site.role,
        base=where.base,
        inside=where.inside,
        in_layers=site.layer is not None,
        parameter=site.parameter,
        shape=site.shape,
        dtype=site.dtype,
        host=site.host,
        slice=site.slice,
        tied=site.tied,
        open=site.open,
        size=site.size,
        bytes=site.size * DTYPE_BYTES.get(site.dtype, 4),
        is_alias=_is_alias(site, found),
        mark=mark,
    )


def _is_alias(site: Site, found: Inventory) -> bool:
    return bool(site.tied) and found.canonical(site.name) != site.name


def _why(inside: str, described: Anatomy) -> str:
    """Return the reason why the weight called `inside` in its layer is open, where inference gives one."""
    known = {item.path.removeprefix("*."): item.why for item in described.inference.open} if described.inference else {}
    return known.get(inside) or known.get(inside.rpartition(".")[0], "")
