"""Whether an options class would accept its own defaults, which Pydantic takes unseen."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from surgery.errors import Problem
from surgery.spec._report import spec_error
from surgery.spec._strict import lines_of

__all__ = ["default_problems"]


def default_problems(options: type[BaseModel]) -> tuple[Problem, ...]:
    """Return what is wrong with defaults of `options`, each named as if a user had written it.

    Nothing is said of keys without a default, nor by checks between keys: those wait for what the user writes.
    """
    fields = options.model_fields
    defaults = {
        field.alias or name: field.default for name, field in fields.items() if field.default is not PydanticUndefined
    }
    try:
        options.model_validate(defaults)
    except ValidationError as error:
        # A required key is missing here and will not be there; a finding without a place is one between keys.
        lines = [line for line in lines_of(error) if line["type"] != "extra_forbidden"]
        wrong = [line for line in lines if line["loc"] and line["loc"][0] in defaults]
        if wrong:
            return spec_error(ValidationError.from_exception_data(options.__name__, wrong), defaults, options).problems
    except Exception:  # a validator that needs a key which is required, and so is not here
        return ()
    return ()
