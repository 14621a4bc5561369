"""An architecture as the text of a plugin, to be completed by its author."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from surgery.architecture import Architecture, Slice, When
from surgery.architecture.architecture import Paths
from surgery.planning.infer import Inference
from surgery.planning.inventory import Inventory

__all__ = ["Draft", "draft_of"]

_INDENT = "    "


@dataclass(frozen=True, slots=True)
class Draft:
    """A plugin's text for a model.

    Attributes:
        model_type: the type that it describes.
        source: Python.
        notes: path -> why it is not described.
        declared_by: the distribution that describes the type already, or "".
    """

    model_type: str
    source: str
    notes: Mapping[str, str]
    declared_by: str


def draft_of(found: Inventory, inference: Inference, declared_by: str) -> Draft:
    """Draft an architecture from what was inferred of a model; `declared_by` is passed on."""
    notes = {item.path: item.why for item in inference.open}
    source = _source(inference.architecture, found.class_name or found.model_type or "model", notes)
    return Draft(found.model_type or "", source, notes, declared_by)


def _base_of(stacks: Mapping[str, str]) -> str:
    """Return the attribute that holds all layers, as task models keep their base model in one; else ""."""
    first = {path.partition(".")[0] for path in stacks.values() if "." in path}
    base = next(iter(first)) if len(first) == 1 else ""
    is_list = base in {path.partition(".*.")[0] for path in stacks.values()}
    return base if base and not is_list and all(path.startswith(f"{base}.") for path in stacks.values()) else ""


def _source(architecture: Architecture, class_name: str, notes: Mapping[str, str]) -> str:
    """Return Python source of a plugin that supplies `architecture`.

    Args:
        architecture: what is known, with paths from the root of the model.
        class_name: the model class that it was taken from.
        notes: path -> why it is not described.
    """
    base = _base_of(architecture.stacks)
    name = re.sub(r"\W", "_", architecture.types[0])
    stacks = {stack: path.removeprefix(f"{base}.") for stack, path in architecture.stacks.items()}
    inside, outside = dict(architecture.roles), {}
    for role, paths in architecture.heads.items():
        one = [path for path in (paths if isinstance(paths, tuple) else (paths,)) if isinstance(path, str)]
        within = tuple(path.removeprefix(f"{base}.") for path in one if base and path.startswith(f"{base}."))
        beside = tuple(path for path in one if not (base and path.startswith(f"{base}.")))
        if within:
            inside[role] = _merged(inside.get(role), within)
        if beside:
            outside[role] = _merged(None, beside)
    table: dict[str, Mapping[str, Any]] = {
        "stacks": stacks,
        "roles": inside,
        "heads": outside,
        "open": dict(architecture.open),
    }
    names = ["Architecture", *_used({**inside, "plain": architecture.plain}), "hookimpl"]
    lines = [
        f'"""{class_name}: drafted from a model, to be read against its code."""',
        "",
        f"from surgery import {', '.join(names)}",
        "",
        *(f"# Not described: {path}: {why}" for path, why in notes.items()),
        f"{name.upper()} = Architecture(",
        f"{_INDENT}types={_python(architecture.types)},",
        f"{_INDENT}base={_python(base)},",
    ]
    for key, values in table.items():
        if values:
            lines.append(f"{_INDENT}{key}={{")
            lines += [f"{2 * _INDENT}{_python(item)}: {_python(value)}," for item, value in values.items()]
            lines.append(f"{_INDENT}}},")
    if architecture.plain:
        lines.append(f"{_INDENT}plain=(")
        lines += [f"{2 * _INDENT}{_python(place)}," for place in architecture.plain]
        lines.append(f"{_INDENT}),")
    lines += [")", "", "", "@hookimpl", "def surgery_architectures() -> list[Architecture]:"]
    lines += [f"{_INDENT}return [{name.upper()}]"]
    return "\n".join(lines)


def _merged(have: Paths | None, more: tuple[Any, ...]) -> Paths:
    both = (*(have if isinstance(have, tuple) else () if have is None else (have,)), *more)
    return both[0] if len(both) == 1 else both


def _used(roles: Mapping[str, Paths]) -> list[str]:
    values = [path for paths in roles.values() for path in (paths if isinstance(paths, tuple) else (paths,))]
    kinds = {type(value).__name__ for value in values}
    return sorted(kinds & {"Slice", "When"})


def _python(value: Any) -> str:
    """Return source of a value as the formatter writes it: double quotes, and no field that has its default."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        inner = ", ".join(_python(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, Slice | When):
        named = [field for field in fields(value)[2:] if getattr(value, field.name) != field.default]
        first = [f"{field.name}={_python(getattr(value, field.name))}" for field in fields(value)[1:2]]
        rest = [f"{field.name}={_python(getattr(value, field.name))}" for field in named]
        return f"{type(value).__name__}({', '.join([_python(value.path), *first, *rest])})"
    return repr(value)
