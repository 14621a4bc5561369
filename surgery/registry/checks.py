"""What a plugin's values must be like, checked when they are collected and not when they are first used."""

from __future__ import annotations

import re
from typing import Any

from surgery.adapter import AdapterType
from surgery.errors import PluginError
from surgery.registry.contracts import TaskType
from surgery.registry.registry import Provenance
from surgery.spec import Options, Rule, default_problems

__all__ = ["check_adapter_type", "check_named", "check_task_type"]

_CORE_KEYS = frozenset(Rule.model_fields) - {"options"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")


def check_named(value: Any, provenance: Provenance) -> None:
    """Raise PluginError unless `name` is one word and `summary` is one line."""
    name, summary = getattr(value, "name", None), getattr(value, "summary", None)
    if not isinstance(name, str) or not name:
        raise PluginError(f"plugin {provenance.plugin!r} of {provenance}: {name!r} is no name", type(value).__name__)
    if not _NAME.fullmatch(name):
        raise PluginError(
            f"{name!r} of {provenance}: a name is letters, digits and any of _ . : -, without spaces",
            hint=f"call it {re.sub(r'[^a-z0-9_.:-]+', '-', name.lower()).strip('-') or 'my-plugin'!r}",
        )
    if not isinstance(summary, str) or not summary.strip() or not summary.isprintable():
        raise PluginError(
            f"{name!r} of {provenance}: summary must be one line of text, not {summary!r}"[:300],
            hint="`surgery plugins` shows it",
        )


def check_adapter_type(value: AdapterType[Any], provenance: Provenance) -> None:
    """Raise PluginError for an adapter type that no rule could name, or whose options could not stand in a rule."""
    check_named(value, provenance)
    who = f"adapter {value.name!r} of {provenance}"
    fields = _options(value, who).model_fields
    spelt = [(name, field.alias, field.validation_alias) for name, field in fields.items()]
    clash = _CORE_KEYS & {key for keys in spelt for key in keys if isinstance(key, str)}
    if clash:
        raise PluginError(
            f"{who} re-uses the core keys {', '.join(sorted(clash))} as options",
            hint="rename them: options stand beside the core keys of a rule",
        )
    _check_defaults(value.options, who)


def check_task_type(value: TaskType[Any], provenance: Provenance) -> None:
    """Raise PluginError for a task that no spec could name, or whose options have unusable defaults."""
    check_named(value, provenance)
    who = f"task {value.name!r} of {provenance}"
    _check_defaults(_options(value, who), who)
    if value.metrics and value.metrics.get(value.metric) is not value.greater_is_better:
        raise PluginError(
            f"{who}: metrics does not hold the primary metric {value.metric!r} with its direction",
            hint=f"metrics = {{{value.metric!r}: {value.greater_is_better}, ...}}",
        )


def _options(value: AdapterType[Any] | TaskType[Any], who: str) -> type[Options]:
    options: object = value.options
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise PluginError(
            f"{who}: options must be a class derived from surgery.Options", hint="leave it out where there are none"
        )
    return options


def _check_defaults(options: type[Options], who: str) -> None:
    problems = default_problems(options)
    if problems:
        raise PluginError(
            f"{who}: a default of {options.__name__} is not valid: {problems[0].what}",
            hint="defaults keep to the field's own type and bounds; a required key has none",
        )
