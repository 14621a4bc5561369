"""Reading the files that verbs are given: a spec, or a study (which has `arms`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.cli.call import shell
from surgery.errors import SpecError
from surgery.spec import Document, Spec, load_document, validate_document

if TYPE_CHECKING:
    from surgery.registry import Registry
    from surgery.study import StudySpec

__all__ = ["read", "read_spec", "read_study"]


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


def _is_study(document: Document) -> bool:
    return isinstance(document.data, Mapping) and "arms" in document.data


def _study(document: Document, registry: Registry) -> StudySpec:
    from surgery.study import StudySpec

    return validate_document(document, StudySpec, registry)
