"""Reading the files that verbs are given: a spec, or a study (which has `arms`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.cli.call import shell
from surgery.errors import Problem, SpecError, SurgeryError
from surgery.spec import Document, Spec, load_document, validate_document

if TYPE_CHECKING:
    from surgery.registry import Registry
    from surgery.study import StudySpec

__all__ = ["free_folder", "placing", "read", "read_spec", "read_study"]

_PLACE = re.compile(r"([a-z_]+)((?:\[\d+\]|\.[a-z_]+)+)(?: \(.*\)((?:\.[a-z_]+)*))?", flags=re.DOTALL)
_STEP = re.compile(r"\[(\d+)\]|\.([a-z_]+)")
_MOST_TRIES = 100


def read(path: Path, registry: Registry) -> Spec | StudySpec:
    """Return the spec or the study in `path`.

    Raises:
        SpecError: every problem of the file at once.
    """
    document = load_document(path, defer=True)
    return _study(document, registry) if _is_study(document) else validate_document(document, Spec, registry)


def read_spec(path: Path, registry: Registry) -> Spec:
    """Return the spec in `path`; a study is an error that says what to type."""
    document = load_document(path, defer=True)
    if _is_study(document):
        raise SpecError("this is a study, not a spec", str(path), f"surgery compare {shell(path)} --out DIR")
    return validate_document(document, Spec, registry)


def read_study(path: Path, registry: Registry) -> StudySpec:
    """Return the study in `path`; a spec is an error that says what to type."""
    document = load_document(path, defer=True)
    if not _is_study(document) and isinstance(document.data, Mapping) and "rules" in document.data:
        raise SpecError("this is a spec, not a study", str(path), f"surgery train {shell(path)} --out DIR")
    return _study(document, registry)


@contextmanager
def placing(path: Path) -> Iterator[None]:
    """Add `file:line:col` to errors that lower layers, which know no file, place at `rules[1]` or `data.columns`."""
    try:
        yield
    except SpecError:
        raise  # of the file itself, which knows its places
    except SurgeryError as error:
        document = load_document(path, defer=True)
        raise type(error).of([_placed(problem, document) for problem in error.problems]) from error


def free_folder(name: str) -> str:
    """Return `name`, or the first of `name-2`, `name-3`, ... that is not there or empty: a folder to suggest."""
    for number in range(1, _MOST_TRIES):
        path = Path(name if number == 1 else f"{name}-{number}")
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return str(path)
    return "DIR"


def _placed(problem: Problem, document: Document) -> Problem:
    match = _PLACE.fullmatch(problem.where)
    if match is None or not isinstance(document.data, Mapping):
        return problem
    steps = [int(index) if index else key for index, key in _STEP.findall(match[2] + (match[3] or ""))]
    # A file or folder may be called data.csv: the first step must be there.
    if not _holds(document.data.get(match[1]), steps[0]):
        return problem
    line, column = document.locate((match[1], *steps), key=isinstance(steps[-1], str))
    return replace(problem, where=f"{document.name}:{line}:{column}  {problem.where}")


def _holds(value: object, step: int | str) -> bool:
    if isinstance(step, int):
        return isinstance(value, list) and step < len(value)
    return isinstance(value, Mapping) and step in value


def _is_study(document: Document) -> bool:
    return isinstance(document.data, Mapping) and "arms" in document.data


def _study(document: Document, registry: Registry) -> StudySpec:
    from surgery.study import StudySpec

    return validate_document(document, StudySpec, registry)
