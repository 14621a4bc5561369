"""`surgery plugins`: what is installed, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgery.cli.call import Call

if TYPE_CHECKING:
    from surgery.registry import Registered, Registry

__all__ = ["EXAMPLES", "plugins"]

EXAMPLES = "Example:  surgery plugins --json"

_COLUMNS = ("name", "kind", "plugin", "distribution", "version", "summary")


def plugins(call: Call) -> None:
    """List the adapters, architectures, models, data sets and tasks that the installed plugins supply.

    The column PLUGIN is what --plugin and --no-plugin take.
    """
    rows = _rows(call.registry())
    call.answer(rows, _table(rows), lambda line: "bold" if line.startswith("NAME ") else "")
    call.next_step("surgery schema > spec.schema.json, for an editor that knows their options")


def _rows(registry: Registry) -> list[dict[str, str]]:
    tables: Mapping[str, Mapping[str, Registered[Any]]] = {
        "adapter": registry.adapters,
        "architecture": registry.architectures,
        "data set": registry.datasets,
        "models": registry.models,
        "task": registry.tasks,
    }
    rows = [
        {
            "name": name,
            "kind": kind,
            "plugin": entry.provenance.plugin,
            "distribution": entry.provenance.distribution,
            "version": entry.provenance.version,
            "summary": getattr(entry.value, "summary", ""),
        }
        for kind, table in tables.items()
        for name, entry in sorted(table.items())
    ]
    silent = [item for item in registry.plugins if item.plugin not in {row["plugin"] for row in rows}]
    for item in sorted(silent, key=lambda item: item.plugin):
        # A plugin that supplies nothing is worth a line: its author is looking for it.
        about = {"plugin": item.plugin, "distribution": item.distribution, "version": item.version}
        rows.append({"name": "-", "kind": "nothing", "summary": "", **about})
    return rows


def _table(rows: list[dict[str, str]]) -> str:
    lines = [[column.upper() for column in _COLUMNS], *([row[column] for column in _COLUMNS] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
