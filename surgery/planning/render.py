"""Plans as text: a folded tree in which identical layers stand once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from surgery.architecture.roles import OTHER
from surgery.planning.fold import Place, fold, place, ranges
from surgery.planning.marks import scalar
from surgery.planning.plan import Edit, Plan

__all__ = ["count", "human_bytes", "render_plan", "shape_of"]


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


def shape_of(shape: Sequence[int]) -> str:
    """Return `768x3072`."""
    return "x".join(str(extent) for extent in shape) or "scalar"


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
                lines.append("  " + ", ".join(f"{key} {scalar(value)}" for key, value in options.items()))
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


def _folded_edits(edits: Iterable[Edit]) -> list[str]:
    lines: list[str] = []
    for group in fold(_edit_line(edit) for edit in edits):
        if group.layers is None:
            lines += group.rows
        else:
            lines.append(f"{group.stack or 'layers'} {ranges(group.layers)}:")
            lines += [f"  {row}" for row in group.rows]
    return lines


def _edit_line(edit: Edit) -> tuple[Place, str]:
    site = edit.site
    where = place(site)
    role = "other" if site.role.startswith(OTHER) else site.role
    tied = f"  {edit.tied} {', '.join(site.tied)}" if edit.tied else ""
    also = f" + {', '.join(other.parameter for other in edit.companions)}" if edit.companions else ""
    return where, f"{role:<24} {where.name}{also}  {shape_of(site.shape)} +{edit.parameters:,}{tied}"
