"""The base of every model a user fills in: frozen, strict, closed, and telling all its problems at once."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from surgery.errors import SpecError
from surgery.spec._report import spec_error

__all__ = ["Options", "StrictModel", "lines_of", "said", "unknown_key"]


MAX_UNKNOWN = 1000


class StrictModel(BaseModel):
    """A frozen model that coerces nothing, accepts no unknown key, and reports every problem together.

    Called as a class (`Model(key=...)`) it raises `SpecError` in the words of the project; `model_validate` raises
    Pydantic's own error, as ever. A list is accepted where a field is a tuple, because YAML knows lists only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, /, **keys: Any) -> None:
        try:
            super().__init__(**keys)
        except ValidationError as error:
            raise spec_error(error, keys, type(self)) from None

    # Pydantic then treats this constructor as its own: nested validation does not call it, so contexts are kept.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="wrap")
    @classmethod
    def _collect(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if isinstance(data, cls):
            return handler(data)
        data = cls._shorthand(data)
        if not isinstance(data, Mapping):
            return handler(data)
        keys, lines = cls._prepare(dict(data), info.context)
        lines += cls._cross_check(data, info.context)
        try:
            model = handler(keys)
        except ValidationError as error:
            lines = [*lines_of(error), *lines]
        except SpecError as error:
            lines = [*(said(problem.what, problem.hint) for problem in error.problems), *lines]
        if lines:
            raise ValidationError.from_exception_data(cls.__name__, lines)
        return model

    @classmethod
    def _shorthand(cls, data: Any) -> Any:
        """Return `data`, or the mapping that a short form of it stands for."""
        return data

    @classmethod
    def _prepare(cls, data: dict[str, Any], context: Any) -> tuple[dict[str, Any], list[InitErrorDetails]]:
        """Return the keys to validate, and the problems of those that are taken out."""
        known = _keys_of(cls)
        unknown = [key for key in data if key not in known]
        # A file of nothing but unknown keys must not cost seconds; fifty are shown in any case.
        lines = [unknown_key(key, known) for key in unknown[:MAX_UNKNOWN]]
        return {key: _as_tuple(cls, key, value) for key, value in data.items() if key in known}, lines

    @classmethod
    def _cross_check(cls, data: Mapping[str, Any], context: Any) -> list[InitErrorDetails]:
        """Return problems between keys, found on the raw data so that they are told beside all others."""
        return []


class Options(StrictModel):
    """The base of an adapter's or a task's options: subclass it and declare fields.

    >>> class LoraOptions(Options):
    ...     rank: int = Field(gt=0, description="rank of the update")

    Strict: text is never a number or a boolean, a boolean is never an integer, an integer is accepted for a float,
    floats are finite. Fields that hold several values should be tuples, which keeps the options hashable.
    """


def said(what: str, hint: str = "", loc: tuple[str | int, ...] = ()) -> InitErrorDetails:
    """Return a problem in the project's own words; a `what` that begins with a verb gets the key's name in front."""
    kind = PydanticCustomError("said", "{what}", {"what": what, "hint": hint})
    return InitErrorDetails(type=kind, loc=loc, input=None)


def unknown_key(key: Any, known: typing.Iterable[str]) -> InitErrorDetails:
    """Return the problem of a key that no field has."""
    kind = PydanticCustomError("unknown_key", "unknown key", {"known": sorted(known)})
    return InitErrorDetails(type=kind, loc=(key if isinstance(key, int) else str(key),), input=None)


def lines_of(error: ValidationError) -> Iterator[InitErrorDetails]:
    """Take `error` apart into lines that another `ValidationError` can be built from."""
    for line in error.errors(include_url=False):
        context = line.get("ctx", {})
        kind: str | PydanticCustomError = line["type"]
        try:
            PydanticKnownError(line["type"], context)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError):
            kind = PydanticCustomError(line["type"], "{msg}", {"msg": line["msg"], **context})
        yield InitErrorDetails(type=kind, loc=line["loc"], input=line["input"], ctx=context)


def _keys_of(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def _as_tuple(model: type[BaseModel], key: str, value: Any) -> Any:
    if not isinstance(value, list | tuple) or key not in model.model_fields:
        return value
    wanted = _containers(model.model_fields[key].annotation)
    if isinstance(value, list) and tuple in wanted and list not in wanted:
        return tuple(value)
    if isinstance(value, tuple) and list in wanted and tuple not in wanted:
        return list(value)
    return value


def _containers(annotation: Any) -> set[Any]:
    """Return the plain types a field may hold, through `Optional`, unions and `Annotated`."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _containers(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_containers(part) for part in typing.get_args(annotation)))
    return {origin or annotation}
