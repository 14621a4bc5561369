"""From Pydantic's findings to problems in the caller's words, each with its place, sorted as they stand in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from surgery.errors import Problem, SpecError
from surgery.spec._path import path_text
from surgery.spec._words import Words, alternatives, describe

if TYPE_CHECKING:
    from surgery.spec._document import Document

__all__ = ["MAX_PROBLEMS", "spec_error"]

MAX_PROBLEMS = 50

_Path = tuple[str | int, ...]
_ABOUT_KEY = ("unknown_key", "extra_forbidden")


@dataclass(slots=True)
class _Found:
    """One finding: its path in the data, whether it is about the key, and the union branch it came from."""

    path: _Path
    about_key: bool
    branch: bool
    at: tuple[int, int]
    error: ErrorDetails


def spec_error(
    error: ValidationError | None, data: Any, model: type[BaseModel], document: Document | None = None
) -> SpecError:
    """Return one `SpecError` for everything in `error` and in the document's own findings."""
    found = [_find(line, data, document) for line in error.errors(include_url=False)] if error is not None else []
    if document is not None:
        unusable = {finding.path for finding in document.findings if finding.stand_in}
        found = [item for item in found if not any(item.path[:end] in unusable for end in range(len(item.path) + 1))]
    placed: list[tuple[tuple[int, int], Problem]] = []
    if document is not None:
        for finding in document.findings:
            placed.append((finding.at, Problem(finding.what, _where(document, finding.at, finding.path), finding.hint)))
    groups = _grouped(found)
    # Only what is shown is put into words: hints compare names, which is slow for thousands of them.
    groups.sort(key=lambda group: group[0].at)
    placed += [(group[0].at, _problem(group, model, document)) for group in groups[:MAX_PROBLEMS]]
    placed.sort(key=lambda item: item[0])
    problems = [problem for _, problem in placed[:MAX_PROBLEMS]]
    total = len(groups) + (len(document.findings) if document is not None else 0)
    if total > len(problems):
        problems.append(Problem(f"and {total - len(problems)} more problems", document.name if document else ""))
    return SpecError.of(problems)  # type: ignore[return-value]


def _find(error: ErrorDetails, data: Any, document: Document | None) -> _Found:
    kind = error["type"]
    path, branch = _resolve(error["loc"], data, kind)
    about_key = kind in _ABOUT_KEY or error["loc"][-1:] == ("[key]",)
    at = (0, 0)
    if document is not None:
        missing = kind == "missing"
        at = document.locate(path[:-1], key=True) if missing else document.locate(path, key=about_key)
        if kind in ("said", "value_error") and isinstance(_at(data, path), dict) and path:
            at = document.locate(path, key=isinstance(path[-1], str))
    return _Found(path, about_key, branch, at, error)


def _resolve(loc: tuple[str | int, ...], data: Any, kind: str) -> tuple[_Path, bool]:
    """Return the part of `loc` that is in the data, without the names of union branches that Pydantic mixes in."""
    path: list[str | int] = []
    branch = False
    node = data
    for number, step in enumerate(loc):
        if _holds(node, step):
            node = node[step]
        elif not (number == len(loc) - 1 and kind in ("missing", *_ABOUT_KEY)):
            branch = branch or step != "[key]"
            continue
        path.append(step)
    return tuple(path), branch


def _holds(node: Any, step: str | int) -> bool:
    if isinstance(node, Mapping):
        return step in node
    return isinstance(node, list | tuple) and isinstance(step, int) and step < len(node)


def _at(data: Any, path: _Path) -> Any:
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _grouped(found: list[_Found]) -> list[list[_Found]]:
    """Put the branches of one union together: a value that fits none of them is one problem."""
    groups: dict[tuple[Any, ...], list[_Found]] = {}
    for number, item in enumerate(found):
        key = (item.path, "branch") if item.branch else (item.path, number)
        groups.setdefault(key, []).append(item)
    return list(groups.values())


def _problem(group: list[_Found], model: type[BaseModel], document: Document | None) -> Problem:
    first = group[0]
    spoken = [Words(item.error, item.path, item.about_key).spoken() for item in group]
    what, hint = alternatives(spoken, describe(first.error["input"])) if len(spoken) > 1 else spoken[0]
    path = first.path[:-1] if first.error["type"] == "missing" else first.path
    return Problem(what, path_text(path) if document is None else _where(document, first.at, path), hint)


def _where(document: Document, at: tuple[int, int], path: _Path) -> str:
    place = f"{document.name}:{at[0]}:{at[1]}"
    return f"{place}  {path_text(path)}" if path else place
