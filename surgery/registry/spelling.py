"""A hook that is misspelt, not marked, or has arguments is silence to pluggy; here it is an error."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from surgery.errors import PluginError
from surgery.registry import hooks
from surgery.registry.registry import Provenance

__all__ = ["refuse_arguments", "refuse_misspelt"]

_PREFIX = f"{hooks.PROJECT}_"
_KNOWN = tuple(name for name in vars(hooks) if name.startswith(_PREFIX))
# Of what follows the prefix, which alone would make any two names similar.
_CLOSE = 0.75


def refuse_arguments(plugin: object, provenance: Provenance) -> None:
    """Raise PluginError for a hook with arguments, which pluggy refuses in words of its own."""
    for member, value in _members(plugin).items():
        if member in _KNOWN and _is_marked(value):
            parameters = inspect.signature(value).parameters.values()
            needed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            names = [item.name for item in parameters if item.kind in needed and item.default is item.empty]
            if names:
                raise PluginError(
                    f"plugin {provenance.plugin!r} of {provenance}: {member}({', '.join(names)}) has arguments",
                    hint="hooks take no arguments",
                )


def refuse_misspelt(plugin: object, provenance: Provenance) -> None:
    """Raise PluginError for a hook that would never be called, and for a plugin without any."""
    members = _members(plugin)
    who = f"plugin {provenance.plugin!r} of {provenance}"
    for member, value in members.items():
        meant = _meant(member)
        if _is_marked(value):
            if member not in _KNOWN:
                raise PluginError(f"{who} implements an unknown hook {member!r}", "", _suggest(meant))
        elif meant and callable(value):
            said = (
                f"defines {member!r} without marking it" if member == meant else f"defines {member!r}, which is no hook"
            )
            hint = "put @surgery.hookimpl above it"
            raise PluginError(f"{who} {said}", "", hint if member == meant else f"{_suggest(meant)} If so, {hint}")
    if not any(_is_marked(value) for value in members.values()):
        likely = [member for member in members if member.startswith(_PREFIX)]
        raise PluginError(
            f"{who} implements no hook",
            ", ".join(likely),
            f"a hook is a function marked with @surgery.hookimpl: {', '.join(_KNOWN)}",
        )


def _members(plugin: object) -> Mapping[str, Any]:
    return vars(plugin) if isinstance(plugin, ModuleType) else {key: getattr(plugin, key) for key in dir(plugin)}


def _is_marked(value: object) -> bool:
    return hasattr(value, f"{hooks.PROJECT}_impl")


def _meant(member: str) -> str:
    """The hook that a function's name is, or is nearly; nothing where it is about something else."""
    if not member.startswith(_PREFIX):
        return ""
    endings = [name.removeprefix(_PREFIX) for name in _KNOWN]
    close = difflib.get_close_matches(member.removeprefix(_PREFIX), endings, n=1, cutoff=_CLOSE)
    return _PREFIX + close[0] if close else ""


def _suggest(meant: str) -> str:
    return f"did you mean {meant!r}?" if meant else f"known: {', '.join(_KNOWN)}"
