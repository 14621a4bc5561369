"""Plans and models as text: a folded tree in which identical layers stand once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from surgery.architecture import Site
from surgery.architecture.roles import OTHER
from surgery.planning.inventory import Inventory
from surgery.planning.plan import Edit, Plan

__all__ = ["count", "human_bytes", "render_plan", "render_sites"]


def human_bytes(size: float) -> str:
    """Return bytes in binary units, e.g. `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def count(number: int, noun: str) -> str:
    """Return `1 site`, `2 sites`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def render_plan(plan: Plan) -> str:
    """Return the plan as text, the same bytes for equal plans."""
    base = " ".join(part for part in (plan.class_name, plan.architecture and f"[{plan.architecture}]") if part)
    lines = [
        f"plan {plan.spec.name}  {plan.hash[:12]}",
        f"model {base or plan.model_type or 'without architecture'}, {plan.model_parameters:,} parameters, "
        f"{human_bytes(plan.model_bytes)}, from {plan.origin}",
    ]
    for outcome in plan.outcomes:
        rule = outcome.rule
        patterns = [f"role {rule.role}" if rule.role else "", f"target {rule.target}" if rule.target else ""]
        layers = "" if rule.layers == "all" else f", layers {rule.layers}"
        lines.append("")
        lines.append(f"rules[{outcome.index}] {' and '.join(filter(None, patterns))}{layers} -> {rule.adapter}")
        edits = [edit for edit in plan.edits if edit.rule == outcome.index]
        notes = [f"wins {count(outcome.won, 'site')}", f"trains {count(outcome.parameters, 'parameter')}"]
        notes += [f"loses {count(lost, 'site')} to rules[{index}]" for index, lost in outcome.lost.items()]
        if outcome.unclaimed:
            notes.append(f"leaves {count(outcome.unclaimed, 'matched parameter')} alone")
        lines.append(f"  {', '.join(notes)}")
        if edits:
            options = edits[0].options.model_dump(mode="json")
            if options:
                lines.append("  " + ", ".join(f"{key} {_scalar(value)}" for key, value in options.items()))
        lines += [f"    {line}" for line in _folded_edits(edits)]
    share = 100 * plan.parameters / max(plan.model_parameters, 1)
    lines += [
        "",
        f"trainable  {plan.parameters:,} = {plan.adapter_parameters:,} adapter + {plan.head_parameters:,} head "
        f"({share:.3g} % of the model)",
        f"memory     gradients {human_bytes(plan.gradient_bytes)}, AdamW {human_bytes(plan.optimizer_bytes)}",
        f"checkpoint {human_bytes(plan.checkpoint_bytes)}",
    ]
    return "\n".join(lines)


def render_sites(inventory: Inventory, sites: Sequence[Site], architecture: str) -> str:
    """Return a model's anatomy as text: role, shape, host, dtype and ties; layers that look alike stand once."""
    name = inventory.class_name or inventory.model_type or "model"
    lines = [
        f"{name} [{architecture or 'no architecture: roles are other.<path>, use target:'}], "
        f"{inventory.parameters:,} parameters, {human_bytes(inventory.bytes)}, from {inventory.origin}"
    ]
    for group in _fold(_Row.of_site(site) for site in sites):
        if group.layers is None:
            lines += [f"  {row.text}" for row in group.rows]
        else:
            lines.append(f"  {group.stack or 'layers'} {_ranges(group.layers)} ({count(len(group.layers), 'layer')})")
            lines += [f"    {row.text}" for row in group.rows]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Row:
    stack: str
    layer: int | None
    text: str

    @classmethod
    def of_site(cls, site: Site) -> _Row:
        stack, layer, role, path = _place(site)
        shape = "x".join(str(extent) for extent in site.shape) or "scalar"
        ties = f"  = {', '.join(site.tied)}" if site.tied else ""
        part = f" of axis {site.slice.axis}" if site.slice else ""
        return cls(stack, layer, f"{role:<24} {path}  {shape}{part} {site.host} {site.dtype}{ties}")

    @classmethod
    def of_edit(cls, edit: Edit) -> _Row:
        site = edit.site
        stack, layer, role, path = _place(site)
        shape = "x".join(str(extent) for extent in site.shape) or "scalar"
        tied = f"  {edit.tied} {', '.join(site.tied)}" if edit.tied else ""
        also = f" + {', '.join(other.parameter for other in edit.companions)}" if edit.companions else ""
        return cls(stack, layer, f"{role:<24} {path}{also}  {shape} +{edit.parameters:,}{tied}")


@dataclass
class _Group:
    stack: str
    layers: list[int] | None
    rows: list[_Row] = field(default_factory=list)


def _folded_edits(edits: Iterable[Edit]) -> list[str]:
    lines: list[str] = []
    for group in _fold(_Row.of_edit(edit) for edit in edits):
        if group.layers is None:
            lines += [row.text for row in group.rows]
        else:
            lines.append(f"{group.stack or 'layers'} {_ranges(group.layers)}:")
            lines += [f"  {row.text}" for row in group.rows]
    return lines


def _fold(rows: Iterable[_Row]) -> list[_Group]:
    """Group rows by layer and put layers whose rows read the same into one group."""
    groups: list[_Group] = []
    by_layer: dict[tuple[str, int], _Group] = {}
    for row in rows:
        if row.layer is None:
            if not groups or groups[-1].layers is not None:
                groups.append(_Group("", None))
            groups[-1].rows.append(row)
            continue
        key = (row.stack, row.layer)
        if key not in by_layer:
            by_layer[key] = _Group(row.stack, [row.layer])
            groups.append(by_layer[key])
        by_layer[key].rows.append(row)
    folded: list[_Group] = []
    for group in groups:
        twin = next((old for old in folded if _is_twin(old, group)), None)
        if twin is not None and twin.layers is not None and group.layers is not None:
            twin.layers += group.layers
        else:
            folded.append(group)
    return folded


def _is_twin(old: _Group, new: _Group) -> bool:
    return (
        new.layers is not None
        and old.layers is not None
        and old.stack == new.stack
        and [row.text for row in old.rows] == [row.text for row in new.rows]
    )


def _place(site: Site) -> tuple[str, int | None, str, str]:
    """Return (stack, layer, role, name), with the layer's index in the name replaced by `*`.

    Without an architecture the one number in a name counts as the layer, so that repeated blocks fold there too.
    """
    role = "other" if site.role.startswith(OTHER) else site.role
    parts = site.name.split(".")
    if site.layer is None:
        numbers = [place for place, part in enumerate(parts) if part.isdecimal() and part.isascii()]
        if role != "other" or len(numbers) != 1:
            return "", None, role, site.name
        place = numbers[0]
    elif parts.count(str(site.layer)) != 1:
        return site.stack, site.layer, role, site.name
    else:
        place = parts.index(str(site.layer))
    path = ".".join([*parts[:place], "*", *parts[place + 1 :]])
    if site.layer is not None:
        return site.stack, site.layer, role, path
    return ".".join(parts[:place]), int(parts[place]), role, path


def _ranges(indices: Sequence[int]) -> str:
    """Return `0-5, 7` for sorted indices."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and spans[-1][1] == index - 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _scalar(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
