"""Loading plugins: entry points only, every one or an error, each hook called once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, distributions
from typing import Any

import pluggy

from surgery.adapter import AdapterType
from surgery.architecture import Architecture
from surgery.errors import PluginError, nearest
from surgery.registry import hooks
from surgery.registry.checks import check_adapter_type, check_named, check_task_type
from surgery.registry.contracts import DataSource, ModelSource, TaskType
from surgery.registry.registry import Provenance, Registered, Registry
from surgery.registry.spelling import refuse_arguments, refuse_misspelt

__all__ = ["AUTOLOAD_SWITCH", "load_registry"]

AUTOLOAD_SWITCH = "SURGERY_DISABLE_PLUGIN_AUTOLOAD"
"""Environment variable: when set (and not 0), only plugins that are named load."""


def load_registry(
    extra: Sequence[object] = (),
    entry_points: bool = True,
    *,
    only: Sequence[str] = (),
    block: Sequence[str] = (),
) -> Registry:
    """Ask every installed plugin once and return what they supply.

    Args:
        extra: plugin objects or modules to register besides the installed ones (for tests and notebooks).
        entry_points: whether to read the `surgery` entry-point group. `SURGERY_DISABLE_PLUGIN_AUTOLOAD=1` loads
            only the plugins in `only`.
        only: entry points to load by name, even when loading is otherwise disabled.
        block: entry points never to load.

    Raises:
        PluginError: a plugin that cannot be imported, a misspelt hook, two values of one name, a wrong return value.
    """
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    sources: dict[str, Provenance] = {}
    for entry, provenance in _chosen(entry_points, only, block):
        _register(manager, _import(entry, provenance), provenance, sources)
    for index, plugin in enumerate(extra):
        name = getattr(plugin, "__name__", None) or f"{type(plugin).__name__}-{index}"
        _register(manager, plugin, Provenance(name, "given in Python", ""), sources)
    for plugin_name, plugin in manager.list_name_plugin():
        refuse_misspelt(plugin, sources[plugin_name])
    manager.check_pending()
    ask = manager.hook
    return Registry(
        adapters=_collect(ask.surgery_adapters, sources, AdapterType, _name, check_adapter_type),
        architectures=_collect(ask.surgery_architectures, sources, Architecture, lambda value: value.types),
        models=_collect(ask.surgery_models, sources, ModelSource, _name, check_named),
        datasets=_collect(ask.surgery_datasets, sources, DataSource, _name, check_named),
        tasks=_collect(ask.surgery_tasks, sources, TaskType, _name, check_task_type),
        plugins=tuple(sources.values()),
    )


def _installed() -> dict[str, list[tuple[EntryPoint, Provenance]]]:
    """Return entry-point name -> where it is found; several distributions may name one."""
    found: dict[str, list[tuple[EntryPoint, Provenance]]] = {}
    for distribution in distributions():
        for entry in distribution.entry_points:
            if entry.group != hooks.PROJECT:
                continue
            provenance = Provenance(entry.name, distribution.metadata["Name"] or "unnamed", distribution.version)
            known = found.setdefault(entry.name, [])
            if provenance.distribution not in [other.distribution for _, other in known]:
                known.append((entry, provenance))
    return found


def _chosen(entry_points: bool, only: Sequence[str], block: Sequence[str]) -> Iterator[tuple[EntryPoint, Provenance]]:
    installed = _installed() if entry_points or only else {}
    for name in (*only, *block):
        if name not in installed:
            raise PluginError(f"no installed plugin is called {name!r}", hint=nearest(name, installed))
    autoload = entry_points and os.environ.get(AUTOLOAD_SWITCH, "0") in ("", "0")
    for name in sorted(installed):
        if name not in block and (autoload or name in only):
            if len(installed[name]) > 1:
                places = " and ".join(str(provenance) for _, provenance in installed[name][:2])
                raise PluginError(
                    f"two distributions name a plugin {name!r}: {places}",
                    hint=f"uninstall one of them, or --no-plugin {name} to do without both",
                )
            yield installed[name][0]


def _import(entry: EntryPoint, provenance: Provenance) -> object:
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # A stranger's import may raise anything, and even leave.
        raise PluginError(
            f"plugin {entry.name!r} of {provenance} cannot be imported: {type(error).__name__}: {error}",
            entry.value,
            f"repair or uninstall it, or run with --no-plugin {entry.name}",
        ) from error


def _register(
    manager: pluggy.PluginManager, plugin: object, provenance: Provenance, sources: dict[str, Provenance]
) -> None:
    if any(plugin is known for known in manager.get_plugins()):
        return  # one module, two entry points
    refuse_arguments(plugin, provenance)
    try:
        manager.register(plugin, provenance.plugin)
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginError(
            f"plugin {provenance.plugin!r} of {provenance} does not fit: {error}", hint="see docs/write-an-adapter.md"
        ) from error
    sources[provenance.plugin] = provenance


def _collect(
    hook: Any,
    sources: Mapping[str, Provenance],
    kind: Any,
    names: Callable[[Any], Iterable[str]],
    check: Callable[[Any, Provenance], None] = lambda value, provenance: None,
) -> dict[str, Registered[Any]]:
    table: dict[str, Registered[Any]] = {}
    for implementation in sorted(hook.get_hookimpls(), key=lambda item: str(item.plugin_name)):
        provenance = sources[implementation.plugin_name]
        try:
            values = _list(implementation.function())
        except Exception as error:
            raise PluginError(
                f"plugin {provenance.plugin!r} of {provenance}: {hook.name}() failed: {type(error).__name__}: {error}",
                hint=f"repair it, or run with --no-plugin {provenance.plugin}",
            ) from error
        for value in values:
            if not isinstance(value, kind):
                raise PluginError(
                    f"plugin {provenance.plugin!r} of {provenance}: {hook.name}() must return instances of "
                    f"{kind.__name__}, not {value!r}"
                )
            check(value, provenance)
            for name in _names(value, names, hook.name, provenance):
                if name in table:
                    raise PluginError(
                        f"{name!r} is supplied twice: by {table[name].provenance} (plugin "
                        f"{table[name].provenance.plugin!r}) and by {provenance} (plugin {provenance.plugin!r})",
                        hook.name,
                        f"block one of them: --no-plugin {provenance.plugin}",
                    )
                table[name] = Registered(value, provenance)
    return dict(sorted(table.items()))


def _name(value: Any) -> tuple[str]:
    return (value.name,)


def _list(values: object) -> list[Any]:
    if not isinstance(values, list | tuple):
        raise TypeError(f"it must return a list, not {values!r}"[:200])
    return list(values)


def _names(value: Any, names: Callable[[Any], Iterable[str]], hook: str, provenance: Provenance) -> tuple[str, ...]:
    given = [name for name in names(value) if not isinstance(name, str) or not name]
    if given:
        raise PluginError(f"plugin {provenance.plugin!r} of {provenance}: {given[0]!r} is no name", hook)
    return tuple(names(value))
