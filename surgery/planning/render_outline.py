"""A model's anatomy as text: bytes, role, shape, host and path of every row, in columns that fit 100 characters."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence

from surgery.architecture import Part
from surgery.planning.fold import Group, ranges
from surgery.planning.marks import chosen
from surgery.planning.outline import Outline, Row
from surgery.planning.render import count, human_bytes, shape_of

__all__ = ["base_of", "cut_of", "group_title", "name_in", "one_dtype", "render_outline"]

_WIDTH = 100


def render_outline(outline: Outline) -> str:
    """Return an outline as text: layers that look alike stand once, and what a spec touches is marked.

    The bytes of a tied tensor are counted where it is called by its first name; its other names say `tied`.
    """
    found = outline.inventory
    dtype = one_dtype(outline)
    parts = [
        f"{found.class_name or found.model_type or 'model'} "
        f"[{outline.provenance or 'no architecture: roles are other.<path>, use target:'}]",
        f"{found.parameters:,} parameters",
        human_bytes(found.bytes),
        *([f"all {dtype}"] if dtype else []),
        f"from {found.origin}",
    ]
    lines = [", ".join(parts)]
    columns = _Columns(outline, has_dtype=not dtype)
    for group in outline.groups:
        if group.layers is not None:
            base = base_of(group)
            lines.append(f"  {group_title(group)}{f': {base}' if base else ''}")
        lines += [columns.line(row, name_in(group, row)) for row in group.rows]
    return "\n".join([*lines, *_sources(outline), *_open(outline), *_spec(outline)])


def group_title(group: Group[Row]) -> str:
    """Return `encoder 0-11 (12 layers), 324.4 MiB, 27.0 MiB each`."""
    layers = group.layers or []
    each = sum(row.counted for row in group.rows)
    size = human_bytes(each * len(layers)) + (f", {human_bytes(each)} each" if len(layers) > 1 else "")
    return f"{group.stack or 'layers'} {ranges(layers)} ({count(len(layers), 'layer')}), {size}"


def base_of(group: Group[Row]) -> str:
    """Return the name up to the layer's index that all rows of a group share; "" where there is none."""
    bases = {row.base for row in group.rows}
    return next(iter(bases)) if len(bases) == 1 else ""


def name_in(group: Group[Row], row: Row) -> str:
    """Return the name of a row below the group's own."""
    return ".".join(filter(None, ("" if base_of(group) else row.base, row.inside)))


def one_dtype(outline: Outline) -> str:
    """Return the dtype of every row, or "" where there are several."""
    dtypes = {row.dtype for group in outline.groups for row in group.rows}
    return next(iter(dtypes)) if len(dtypes) == 1 else ""


def cut_of(part: Part | None) -> str:
    """Return which entries a part has, in brackets: `[:, 16:32]`, or `[0:8 of every 24]` where they alternate."""
    if part is None:
        return ""
    axes = ":, " * part.axis
    span = part.span()
    if span is not None:
        return f"[{axes}{span[0]}:{span[0] + span[1]}]"
    inner = 1
    for extent in part.view[part.dim + 1 :]:
        inner *= extent
    first, last = part.start * inner, (part.start + part.length) * inner
    return f"[{axes}{first}:{last} of every {part.view[part.dim] * inner}]"


class _Columns:
    """The widths that all rows of one outline share; what is long stands last."""

    def __init__(self, outline: Outline, *, has_dtype: bool) -> None:
        rows = [row for group in outline.groups for row in group.rows]
        self._has_dtype = has_dtype
        self._widths = [
            max((len(cell) for cell in cells), default=0) for cells in zip(*map(self._cells, rows), strict=True)
        ]

    def line(self, row: Row, name: str) -> str:
        size, *cells = self._cells(row)
        padded = [f"{size:>13}", *(cell.ljust(width) for cell, width in zip(cells, self._widths[1:], strict=True))]
        ties = f"  = {', '.join(row.tied)}" if row.tied else ""
        unknown = "  ? open" if row.open else ""
        mark = f"  {row.mark}" if row.mark else ""
        return "  ".join(padded) + f"  {name}{cut_of(row.slice)}{ties}{unknown}{mark}"

    def _cells(self, row: Row) -> list[str]:
        size = "tied" if row.is_alias else human_bytes(row.bytes)
        return [size, row.role or "other", shape_of(row.shape), row.host, *([row.dtype] if self._has_dtype else [])]


def _sources(outline: Outline) -> Iterator[str]:
    roles: dict[str, list[str]] = defaultdict(list)
    for role, source in outline.sources.items():
        roles[source].append(role)
    for source, names in sorted(roles.items()):
        yield from _wrapped(f"inferred from {source}: {', '.join(sorted(names))}")


def _open(outline: Outline) -> Iterator[str]:
    for row in outline.open:
        times = f" ({count(row.sites, 'site')})" if row.sites > 1 else ""
        yield from _wrapped(f"open: {row.name}{times} may hold {_either(row.roles)}{f': {row.why}' if row.why else ''}")


def _spec(outline: Outline) -> Iterator[str]:
    plan = outline.plan
    for outcome in plan.outcomes if plan else ():
        said = next((edit.options for edit in plan.edits if edit.rule == outcome.index), None) if plan else None
        words = " ".join(filter(None, (outcome.rule.adapter, chosen(said) if said else "")))
        yield (
            f"rules[{outcome.index}] {words}: wins {count(outcome.won, 'site')}, "
            f"trains {count(outcome.parameters, 'parameter')}"
        )


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
