"""A YAML or JSON file as plain data that knows where each value stands."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgery.errors import Problem, SpecError, nearest
from surgery.spec._compose import Composed, Finding, Step, compose
from surgery.spec._json import json_as_yaml
from surgery.spec._path import path_text

__all__ = ["MAX_BYTES", "Document", "load_document"]

MAX_BYTES = 256 * 1024

_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Document:
    """One file's plain data with positions.

    Attributes:
        name: the file's name as the caller gave it.
        data: dicts, lists, text, integers, floats, booleans, None.
        findings: problems of a document that could be read all the same (only with `load_document(..., defer=True)`).
    """

    name: str
    data: Any
    findings: tuple[Finding, ...] = ()
    _keys: dict[tuple[Step, ...], tuple[int, int]] = field(default_factory=dict, repr=False)
    _values: dict[tuple[Step, ...], tuple[int, int]] = field(default_factory=dict, repr=False)

    def locate(self, path: tuple[str | int, ...], key: bool = False) -> tuple[int, int]:
        """Return line and column (1-based) of the value at `path`, or of its key; else of the nearest parent."""
        if key and path in self._keys:
            return self._keys[path]
        for end in range(len(path), -1, -1):
            if path[:end] in self._values:
                known = self._keys if end < len(path) or key else self._values
                return known.get(path[:end], self._values[path[:end]])
        return (1, 1)


def load_document(source: Path | str, *, text: str | None = None, defer: bool = False) -> Document:
    """Read a YAML (or JSON) file, or `text` under the name `source`.

    Args:
        source: the file, or the name that errors give `text`.
        text: read this instead of the file.
        defer: leave problems that do not stop the reading (a duplicate key, say) in `findings`, so that
            `validate_document` can tell them together with its own.

    Raises:
        SpecError: the file cannot be read, or the document breaks the rules, with every problem and its place.
    """
    name = str(source)
    if text is None:
        text = _decode(name, _read(name, Path(source)))
    elif len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _too_large(name)
    text = text.removeprefix("\ufeff")
    if found := _FORBIDDEN.search(text):
        line, column = _position(text, found.start())
        code = f"U+{ord(found.group()):04X}"
        raise SpecError(
            f"the character {code} is not allowed in a text file", f"{name}:{line}:{column}", _binary_hint(text)
        )
    composed = compose(json_as_yaml(text, name))
    return _document(name, text, composed, defer)


def _document(name: str, text: str, composed: Composed, defer: bool) -> Document:
    findings = composed.findings
    if not findings and composed.data is None:
        findings = [Finding((1, 1), "the file is empty", "a spec begins with version: 1", fatal=True)]
    if findings and (not defer or any(finding.fatal for finding in findings)):
        shown = sorted(findings, key=lambda finding: finding.at)[:50]
        raise SpecError.of([Problem(item.what, _where(name, item), item.hint) for item in shown])
    return Document(name, composed.data, tuple(findings), composed.keys, composed.values)


def _where(name: str, finding: Finding) -> str:
    place = f"{name}:{finding.at[0]}:{finding.at[1]}"
    return f"{place}  {path_text(finding.path)}" if finding.path else place


def _read(name: str, path: Path) -> bytes:
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(handle, "rb") as file:
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode):
                raise SpecError("this is not a regular file", name, "give the path of a YAML file")
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise SpecError("this is a folder, not a file", name, _inside_hint(path)) from None
    except (FileNotFoundError, NotADirectoryError):
        raise SpecError("there is no such file", name, _missing_hint(path)) from None
    except PermissionError:
        raise SpecError(
            "the file may not be read", name, "change its permissions, for example with chmod u+r"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"the file cannot be read: {reason}", name) from None
    if len(data) > MAX_BYTES:
        raise _too_large(name)
    return data


def _too_large(name: str) -> SpecError:
    return SpecError(f"the file is larger than {MAX_BYTES // 1024} KiB", name, "is this really a spec?")


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        line, column = _position(before, len(before))
        what = f"the byte 0x{data[error.start]:02X} is not UTF-8"
        raise SpecError(what, f"{name}:{line}:{column}", "save the file as UTF-8 text") from None


def _position(text: str, index: int) -> tuple[int, int]:
    before = text[:index]
    return before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1


def _binary_hint(text: str) -> str:
    return "this looks like a binary file, not a spec" if "\x00" in text[:4096] else "remove it"


def _names(folder: Path, limit: int = 2000) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [
                entry.name for entry, _ in zip(entries, range(limit), strict=False) if not entry.name.startswith(".")
            ]
    except (OSError, ValueError):
        return []


def _missing_hint(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = _names(folder)
    specs = [name for name in names if name.endswith((".yaml", ".yml", ".json"))]
    hint = nearest(path.name, names)
    return hint if hint.startswith("did you mean") else nearest(path.name, specs)


def _inside_hint(path: Path) -> str:
    specs = sorted(name for name in _names(path) if name.endswith((".yaml", ".yml", ".json")))
    return f"give one of its files, for example {path / specs[0]}" if specs else "give the path of a YAML file"
