"""Tab completion: spec files, plugin names, modules of plugins, one of a few words, and adapters of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["merged_adapters", "one_of", "plugin_modules", "plugin_names", "spec_files"]

_SUFFIXES = (".yaml", ".yml", ".json")
_MOST = 500


def spec_files(incomplete: str) -> list[str]:
    """Return spec files that begin with `incomplete`: beside it, and in the folders that begin with it."""
    folder, _, start = incomplete.rpartition("/")
    prefix = f"{folder}/" if folder or incomplete.startswith("/") else ""
    found: list[str] = []
    for path in _entries(Path(prefix or ".")):
        if not path.name.startswith(start):
            continue
        if path.is_dir():
            found += [f"{prefix}{path.name}/{inner.name}" for inner in _entries(path) if inner.suffix in _SUFFIXES]
        elif path.suffix in _SUFFIXES:
            found.append(f"{prefix}{path.name}")
    return found


def plugin_names(incomplete: str) -> list[str]:
    """Return the names of installed plugins that begin with `incomplete`, without importing one."""
    from importlib.metadata import entry_points

    return sorted({entry.name for entry in entry_points(group="surgery") if entry.name.startswith(incomplete)})


def plugin_modules(incomplete: str) -> list[str]:
    """Return modules of installed plugins and Python files here that begin with `incomplete`, without importing one."""
    from importlib.metadata import entry_points

    modules = {entry.value.partition(":")[0] for entry in entry_points(group="surgery")}
    folder, _, start = incomplete.rpartition("/")
    prefix = f"{folder}/" if folder or incomplete.startswith("/") else ""
    files = [
        f"{prefix}{path.name}"
        for path in _entries(Path(prefix or "."))
        if path.name.startswith(start) and (path.suffix == ".py" or (path / "__init__.py").is_file())
    ]
    return sorted(name for name in modules if name.startswith(incomplete)) + files


def one_of(words: Sequence[str]) -> Callable[[str], list[str]]:
    """Return what completes to one of `words`."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def merged_adapters(ctx: Any, incomplete: str) -> list[str]:
    """Return adapters that are merged in the checkpoint named before."""
    # While the option that is completed has no value, the parser stops before it gives arguments their names.
    folder = ctx.params.get("merged") or next(iter(ctx.args), None)
    kept = _entries(Path(folder) / "surgery" / "adapters") if folder else []
    return [path.name for path in kept if path.is_dir() and path.name.startswith(incomplete)]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))[:_MOST]
    except OSError:
        return []
