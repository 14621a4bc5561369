"""The kinds of value that several spec models share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from surgery.errors import SpecError
from surgery.spec._frozen import FrozenMap, control_character
from surgery.spec._layers import check_layers
from surgery.spec._pattern import compile_pattern

__all__ = ["Layers", "PatternText", "Text", "TextMap", "at_most", "frozen_map", "in_words", "plain_map", "some"]


def in_words(what: str, hint: str = "") -> PydanticCustomError:
    """Return an error for a validator to raise; a `what` that begins with a verb gets the key's name in front."""
    return PydanticCustomError("said", "{what}", {"what": what, "hint": hint})


def _text(value: str) -> str:
    if bad := control_character(value):
        raise in_words(f"must not hold the control character {bad}")
    if not value:
        raise in_words("must not be empty", "leave the key out, or write a value")
    if len(value) > 4096:
        raise in_words(f"must have at most 4096 characters, not {len(value)}")
    return value


def _pattern(value: str) -> str:
    try:
        compile_pattern(value)
    except SpecError as error:
        raise in_words(f"is {error.what}", error.hint) from None
    return value


def _layers(value: Any) -> str | tuple[int, ...]:
    try:
        return check_layers(value)
    except SpecError as error:
        raise in_words(error.what, error.hint) from None


def _as_json(value: str | tuple[int, ...]) -> str | list[int]:
    return value if isinstance(value, str) else list(value)


def plain_map(value: Any) -> Any:
    """Let a read-only mapping pass a strict `dict` field."""
    return dict(value) if isinstance(value, Mapping) else value


def frozen_map(value: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Make a validated mapping read-only."""
    return FrozenMap(value)


def at_most(number: int, what: str) -> Callable[[Any], Any]:
    """Return a check that stops before the items of an over-long list are looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) > number:
            raise in_words(f"must hold at most {number} {what}, not {len(value)}")
        return value

    return check


def some(number: int, what: str) -> Callable[[Any], Any]:
    """Return a check for 1 to `number` items that looks at the list only, so that a wrong item is told as itself."""
    upper = at_most(number, what)

    def check(value: Any) -> Any:
        if isinstance(value, list | tuple) and not value:
            raise in_words(f"must hold at least one {what.removesuffix('s')}")
        return upper(value)

    return check


Text = Annotated[str, AfterValidator(_text), WithJsonSchema({"type": "string", "minLength": 1})]
PatternText = Annotated[Text, AfterValidator(_pattern)]
Layers = Annotated[
    str | tuple[int, ...],
    PlainValidator(_layers),
    # Pydantic would check the list that JSON gets against the union again, and warn.
    PlainSerializer(_as_json, return_type=Any, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^\s*(all|(first|last)\s+[0-9]{1,5}|[-0-9,\s]+)\s*$"},
                {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            ]
        }
    ),
]
TextMap = Annotated[Mapping[str, Text], BeforeValidator(plain_map), AfterValidator(frozen_map)]
