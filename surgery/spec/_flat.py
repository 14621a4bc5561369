"""Models whose plugin options sit flat beside their own keys, as a user writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    SkipValidation,
    ValidationError,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from surgery.errors import SurgeryError, nearest
from surgery.spec._catalog import Catalog, Context
from surgery.spec._frozen import FrozenMap, freeze
from surgery.spec._quote import quoted
from surgery.spec._strict import Options, StrictModel, lines_of, said, unknown_key

__all__ = ["Flat"]

OPTIONS = "options"


class Flat(StrictModel):
    """Keys of its own plus the options of the plugin that the key `_plugin_key` names.

    Every key that is no field goes to `options`, as written; with a catalog in the validation context the plugin's
    options model checks them. Serialised, they lie flat again, so a dump is what the user wrote.
    """

    _plugin_key: ClassVar[str]
    _plugin_word: ClassVar[str]

    options: Annotated[Mapping[str, Any], SkipValidation()] = Field(default_factory=FrozenMap, repr=True)

    @classmethod
    def _prepare(cls, data: dict[str, Any], context: Any) -> tuple[dict[str, Any], list[InitErrorDetails]]:
        own = cls._own_keys()
        lines = []
        if OPTIONS in data:
            del data[OPTIONS]
            line = unknown_key(OPTIONS, own)
            hint = f"write the options of the {cls._plugin_word} flat, beside {cls._plugin_key!r}"
            line["type"] = PydanticCustomError("unknown_key", "unknown key", {"known": [], "hint": hint})
            lines.append(line)
        flat = {key: value for key, value in data.items() if key not in own}
        keys, _ = super()._prepare({key: value for key, value in data.items() if key in own}, context)
        keys[OPTIONS], more = _frozen(flat)
        lines += more
        if isinstance(context, Context) and context.catalog is not None and not more:
            lines += cls._plugin_lines(keys.get(cls._plugin_key), flat, context)
        return keys, lines

    @classmethod
    def _plugin_lines(cls, name: Any, flat: Mapping[str, Any], context: Context) -> list[InitErrorDetails]:
        assert context.catalog is not None
        if not isinstance(name, str):
            # Which options are right depends on the plugin, which is not known: the core's own error says so.
            return []
        names = cls._names(context.catalog)
        if name not in names:
            return [said(f"unknown {cls._plugin_word} {quoted(name)}", _unknown_hint(name, names), (cls._plugin_key,))]
        model = cls._model(context.catalog, name)
        try:
            model.model_validate(dict(flat), context=context)
        except ValidationError as error:
            return [_with_known(line, cls._own_keys()) for line in lines_of(error)]
        except SurgeryError:
            raise
        except Exception as error:
            what = f"checking the options failed: {type(error).__name__}: {error}"
            raise context.catalog.failure(cls._plugin_word, name, what) from error
        return []

    @classmethod
    def _own_keys(cls) -> set[str]:
        return set(cls.model_fields) - {OPTIONS}

    @classmethod
    def _names(cls, catalog: Catalog) -> Sequence[str]:
        raise NotImplementedError

    @classmethod
    def _model(cls, catalog: Catalog, name: str) -> type[Options]:
        raise NotImplementedError

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield from ((name, value) for name, value in super().__repr_args__() if name != OPTIONS)
        yield from self.options.items()

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        options = data.pop(OPTIONS, {})
        return {**data, **options}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema.get("properties", {}).pop(OPTIONS, None)
        return schema


def _frozen(flat: Mapping[str, Any]) -> tuple[FrozenMap, list[InitErrorDetails]]:
    kept: dict[str, Any] = {}
    lines = []
    for key, value in flat.items():
        try:
            kept[freeze(key)] = freeze(value)
        except ValueError as error:
            lines.append(said(str(error), "", (key,)))
    return FrozenMap(kept), lines


def _with_known(line: InitErrorDetails, own: set[str]) -> InitErrorDetails:
    """A misspelt key beside options may be meant for the core: name its keys too."""
    kind = line["type"]
    if isinstance(kind, PydanticCustomError) and kind.type == "unknown_key" and len(line.get("loc", ())) == 1:
        known = {*(kind.context or {}).get("known", ()), *own}
        return unknown_key(line.get("loc", ("",))[0], known)
    return line


def _unknown_hint(name: str, names: Sequence[str]) -> str:
    return nearest(name, names) or "no plugin provides any; is the plugin installed and not blocked?"
