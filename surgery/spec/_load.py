"""Reading a spec: a document in, a frozen spec out, or one error that tells everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from surgery.spec._catalog import Catalog, Context
from surgery.spec._document import Document, load_document
from surgery.spec._report import spec_error
from surgery.spec._spec import Spec

__all__ = ["load_spec", "parse_spec", "validate_document"]

_Model = TypeVar("_Model", bound=BaseModel)


def validate_document(document: Document, model: type[_Model], catalog: Catalog | None = None) -> _Model:
    """Return `document` as a `model`, in which rules and tasks may be nested anywhere.

    Args:
        document: what `load_document` returned; with `defer=True` its findings are told here as well.
        model: any Pydantic model; subclasses of `StrictModel` get did-you-mean for unknown keys.
        catalog: checks adapter and task names and their options; None checks the spec's own keys only.

    Raises:
        SpecError: every problem, located as `file:line:col  path`, sorted by position.
    """
    context: Any = Context(catalog, from_file=True)
    try:
        result = model.model_validate(document.data, context=context)
    except ValidationError as error:
        raise spec_error(error, document.data, model, document) from None
    if document.findings:
        raise spec_error(None, document.data, model, document)
    return result


def parse_spec(text: str, name: str = "<spec>", catalog: Catalog | None = None) -> Spec:
    """Return the spec that the YAML or JSON `text` holds.

    Raises:
        SpecError: every problem at once.
    """
    return validate_document(load_document(name, text=text, defer=True), Spec, catalog)


def load_spec(path: Path | str, catalog: Catalog | None = None) -> Spec:
    """Return the spec in the YAML or JSON file `path`.

    Raises:
        SpecError: the file cannot be read, or every problem in it at once.
    """
    return validate_document(load_document(path, defer=True), Spec, catalog)
