"""From YAML events to plain data with positions: no aliases, no tags, no merge keys, no surprises.

PyYAML's own constructors are never used. Working on events keeps hostile documents harmless: nothing is expanded,
depth and size are known before anything is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from surgery.spec._frozen import control_character
from surgery.spec._quote import quoted
from surgery.spec._scalars import ScalarError, plain

__all__ = ["MAX_DEPTH", "Composed", "Finding", "Step", "compose"]

MAX_DEPTH = 32
MAX_FINDINGS = 1000
_CORE_TAG = "tag:yaml.org,2002:"

Step = str | int
_Mark = tuple[int, int]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of the document itself, at a line and a column (1-based).

    Where a value was unusable and something stands in for it (`stand_in`), nobody should complain of what stands there.
    """

    at: _Mark
    what: str
    hint: str = ""
    fatal: bool = False
    path: tuple[Step, ...] = ()
    stand_in: bool = False


@dataclass(slots=True)
class Composed:
    """Plain data, where each key and value stands, and what is wrong with the document."""

    data: Any = None
    keys: dict[tuple[Step, ...], _Mark] = field(default_factory=dict)
    values: dict[tuple[Step, ...], _Mark] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


class _FatalError(Exception):
    """The document cannot be read any further."""


def compose(text: str) -> Composed:
    """Read one YAML document. Problems are collected in `findings`; a fatal one ends the reading."""
    result = Composed()
    try:
        composer = _Composer(text, result)
        composer.document()
    except _FatalError:
        pass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        result.findings.append(_syntax(error, at))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        result.findings.append(Finding((1, 1), f"this is not YAML: {str(error).splitlines()[0][:200]}", fatal=True))
    return result


def _syntax(error: yaml.MarkedYAMLError, at: _Mark) -> Finding:
    reason = " ".join(part for part in (error.problem, error.context) if part)
    hint = "check indentation, brackets and quotes near this place"
    if "cannot start any token" in reason:
        hint = "quote text that begins with @, `, % or a tab; indent with spaces"
    elif "mapping values are not allowed" in reason:
        hint = "quote text that holds ': '; check the indentation"
    elif "escape" in reason:
        hint = "in double quotes write \\\\ for a backslash; a regular expression is best in single quotes"
    return Finding(at, f"this is not YAML: {reason[:200]}", hint, fatal=True)


class _Composer:
    def __init__(self, text: str, result: Composed) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
        self._result = result

    def document(self) -> None:
        self._next()  # the start of the stream
        if isinstance(self._next(), yaml.StreamEndEvent):
            return
        self._result.data = self._value(self._next(), ())
        self._next()  # the end of the document
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            self._fatal(event, "a second document begins here", "keep one document per file: remove the line ---")

    def _next(self) -> Any:
        return next(self._events)

    def _value(self, event: Any, path: tuple[Step, ...]) -> Any:
        self._result.values[path] = _mark(event)
        if len(path) > MAX_DEPTH:
            self._fatal(event, f"the document is nested more than {MAX_DEPTH} levels deep")
        self._plainness(event, path)
        if isinstance(event, yaml.AliasEvent):
            return None
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return self._mapping(path)

    def _plainness(self, event: Any, path: tuple[Step, ...]) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._say(
                event,
                f"the alias *{_cut(event.anchor or '')} is not supported",
                "write the value out",
                path,
                stand_in=True,
            )
            return
        if event.anchor is not None:
            hint = "write the value out where it is used"
            self._say(event, f"the anchor &{_cut(event.anchor)} is not supported", hint, path)
        if event.tag is not None:
            hint = "remove it; quote a value to make it text"
            self._say(
                event, f"the tag {_cut(event.tag.replace(_CORE_TAG, '!!'))} is not supported", hint, path, stand_in=True
            )

    def _scalar(self, event: Any, path: tuple[Step, ...]) -> Any:
        text: str = event.value
        if bad := control_character(text):
            self._say(event, f"the text holds the control character {bad}", "remove the character", path, stand_in=True)
            return ""
        if event.style:
            return text
        try:
            return plain(text)
        except ScalarError as problem:
            self._say(event, problem.what, problem.hint, path, stand_in=True)
            return 0

    def _sequence(self, path: tuple[Step, ...]) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, len(items))))
        return items

    def _mapping(self, path: tuple[Step, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event, path, data)
            if key is None:
                self._value(self._next(), (*path, "?"))
                continue
            self._result.keys[*path, key] = _mark(event)
            data[key] = self._value(self._next(), (*path, key))
        return data

    def _key(self, event: Any, path: tuple[Step, ...], data: dict[str, Any]) -> str | None:
        """Return the key, or None (told) where it cannot be one."""
        if not isinstance(event, yaml.ScalarEvent):
            self._value(event, (*path, "?"))
            if not isinstance(event, yaml.AliasEvent):
                self._say(
                    event, "a key must be text, not a list or a mapping", "quote a key that begins with [ or {", path
                )
            return None
        if not event.style and event.value == "<<":
            self._say(event, "the merge key << is not supported", "write the keys out", path, stand_in=True)
            return None
        self._plainness(event, path)
        key = self._scalar(event, path)
        if not isinstance(key, str):
            shown = _cut(event.value)
            self._say(event, f"the key {shown or '(empty)'} must be text", f'write "{shown}" in quotes', path)
            return None
        if key in data:
            line, column = self._result.keys[*path, key]
            hint = f"the first one is in line {line}, column {column}; keep one of them"
            self._say(event, f"the key {quoted(key)} appears twice", hint, (*path, key))
            return None
        return key

    def _say(self, event: Any, what: str, hint: str, path: tuple[Step, ...], *, stand_in: bool = False) -> None:
        self._result.findings.append(Finding(_mark(event), what, hint, path=path, stand_in=stand_in))
        if len(self._result.findings) >= MAX_FINDINGS:
            self._fatal(event, "the rest of the file was not read, because too much is wrong")

    def _fatal(self, event: Any, what: str, hint: str = "") -> None:
        self._result.findings.append(Finding(_mark(event), what, hint, fatal=True))
        raise _FatalError


def _mark(event: Any) -> _Mark:
    return (event.start_mark.line + 1, event.start_mark.column + 1)


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
