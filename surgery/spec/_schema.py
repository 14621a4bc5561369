"""The JSON Schema of a spec with every installed plugin's options, for editors that complete and check YAML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from surgery.spec._catalog import Catalog
from surgery.spec._spec import Spec
from surgery.spec._strict import Options

__all__ = ["json_schema"]

_Schema = dict[str, Any]


def json_schema(catalog: Catalog | None = None, model: type[BaseModel] = Spec) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of `model` with the options of every adapter and task in `catalog`.

    Args:
        catalog: without one, rules and tasks accept any option.
        model: the spec, or another layer's model that holds rules, tasks or whole specs.
    """
    schema = model.model_json_schema()
    definitions: dict[str, _Schema] = schema.setdefault("$defs", {})
    for name in ("Rule", "Exclude", "ParameterGroup"):
        if name in definitions:
            definitions[name]["anyOf"] = [_given("role"), _given("target")]
    if "TrainingSpec" in definitions:
        definitions["TrainingSpec"]["oneOf"] = [_only("steps", "epochs"), _only("epochs", "steps")]
    if "ModelRef" in definitions:
        definitions["ModelRef"] = {"anyOf": [{"type": "string", "minLength": 1}, definitions["ModelRef"]]}
    for spec in (schema, definitions.get("Spec", {})):
        if spec is not schema or issubclass(model, Spec):
            _require_version(spec)
    if "Rule" in definitions:
        _branch(definitions, "Rule", "adapter", (catalog.adapter_names(), catalog.adapter_options) if catalog else None)
    if "TaskSpec" in definitions:
        _branch(definitions, "TaskSpec", "kind", (catalog.task_names(), catalog.task_options) if catalog else None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _given(key: str) -> _Schema:
    return {"required": [key], "properties": {key: {"type": "string"}}}


def _only(key: str, other: str) -> _Schema:
    return {"required": [key], "properties": {key: {"type": "number"}, other: {"type": "null"}}}


def _require_version(spec: _Schema) -> None:
    if "version" in spec.get("properties", {}):
        spec["required"] = sorted({*spec.get("required", ()), "version"})


def _branch(
    definitions: dict[str, _Schema], name: str, key: str, plugins: tuple[Any, Callable[[str], type[Options]]] | None
) -> None:
    """Replace definition `name` by one closed definition per plugin, chosen by `key`.

    Each branch repeats the core keys, because only a closed object with all its keys is understood by every editor.
    """
    core = definitions[name]
    if plugins is None:
        core["additionalProperties"] = True
        return
    names, options = plugins
    choices = []
    for plugin in sorted(names):
        branch = f"{name}.{plugin}"
        definitions[branch] = _merged(core, key, plugin, options(plugin), definitions)
        test = {"properties": {key: {"const": plugin}}, "required": [key]}
        choices.append({"if": test, "then": {"$ref": f"#/$defs/{quote(branch.replace('~', '~0').replace('/', '~1'))}"}})
    chooser = {**core["properties"][key], "enum": sorted(names)}
    definitions[name] = {"type": "object", "properties": {key: chooser}, "required": [key], "allOf": choices}


def _merged(core: _Schema, key: str, plugin: str, options: type[Options], definitions: dict[str, _Schema]) -> _Schema:
    prefix = f"{plugin}."
    own = options.model_json_schema(
        ref_template=f"#/$defs/{quote(prefix.replace('~', '~0').replace('/', '~1'))}{{model}}"
    )
    for inner, definition in own.pop("$defs", {}).items():
        definitions[prefix + inner] = definition
    chosen = {**core["properties"][key], "const": plugin}
    return {
        **core,
        "title": plugin,
        "description": own.get("description", core.get("description", "")),
        "properties": {**core["properties"], **own.get("properties", {}), key: chosen},
        "required": sorted({*core.get("required", ()), *own.get("required", ())}),
        "additionalProperties": False,
    }
