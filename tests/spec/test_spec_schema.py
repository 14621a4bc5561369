"""The JSON Schema accepts what the loader accepts, and flags what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from test_spec_models import FULL

from surgery.errors import SpecError
from surgery.spec import Catalog, Options, Rule, Spec, json_schema, load_document, parse_spec

GOLDEN = Path(__file__).parent / "golden"
# What a schema cannot say: languages of their own, and the YAML below the data.
BEYOND = {"bad-regex", "duplicate-key", "yaml-traps", "empty", "two-documents"}
SEEN = [path for path in sorted(GOLDEN.glob("*.yaml")) if path.stem not in BEYOND and "syntax" not in path.stem]

MINIMAL = {"version": 1, "name": "a", "rules": [{"role": "x", "adapter": "full"}]}
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"model": "gpt2"},
    {"model": {"ref": "gpt2", "revision": None}},
    {"training": {"steps": 3, "learning_rate": 1}},
    {"training": {"epochs": 0.5, "steps": None, "learning_rate": 0.1, "max_grad_norm": None, "log_to": ["wandb"]}},
    {"data": {"train": "a.csv", "columns": {"text": "review"}, "limit": {"test": 5}}},
    {"task": {"kind": "text-classification", "labels": 4}},
    {"rules": [{"target": "x", "role": None, "adapter": "lora", "rank": 2, "layers": "last 4", "heads": [1]}]},
    {"rules": [{"target": "x", "adapter": "full", "layers": [0, -1], "exclude": {"role": "y"}, "expect": 3}]},
]
REFUSED: list[dict[str, Any]] = [
    {"version": 2},
    {"name": "a b"},
    {"seed": "0"},
    {"sede": 0},
    {"rules": []},
    {"rules": [{"adapter": "full"}]},
    {"rules": [{"role": "x"}]},
    {"rules": [{"role": "x", "adapter": "ful"}]},
    {"rules": [{"role": "x", "adapter": "full", "rank": 3}]},
    {"rules": [{"role": "x", "adapter": "lora"}]},
    {"rules": [{"role": "x", "adapter": "lora", "rank": -3}]},
    {"rules": [{"role": "x", "adapter": "lora", "rank": 2.5}]},
    {"rules": [{"role": "x", "adapter": "lora", "rank": 2, "dropout": -0.5}]},
    {"rules": [{"role": "x", "adapter": "lora", "rank": 2, "alpha": None}]},
    {"rules": [{"role": "x", "adapter": "lora", "rank": 2, "rnak": 3}]},
    {"rules": [{"role": "x", "adapter": "full", "options": {}}]},
    {"rules": [{"role": "x", "adapter": "full", "layers": "some"}]},
    {"rules": [{"role": "x", "adapter": "full", "exclude": {}}]},
    {"training": {"learning_rate": 0.1}},
    {"training": {"steps": 1, "epochs": 1, "learning_rate": 0.1}},
    {"training": {"steps": 1, "learning_rate": 0.1, "groups": [{"learning_rate": 1}]}},
    {"task": {"kind": "text-classification", "lables": 4}},
    {"data": {"limit": {"trian": 3}}},
]


@pytest.fixture(scope="module")
def validator(catalog: Catalog) -> Draft202012Validator:
    schema = json_schema(catalog)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def accepted_by_loader(data: dict[str, Any], catalog: Catalog) -> bool:
    import json

    try:
        parse_spec(json.dumps(data), catalog=catalog)
    except SpecError:
        return False
    return True


@pytest.mark.parametrize("change", ACCEPTED, ids=str)
def test_accepted(change: dict[str, Any], validator: Draft202012Validator, catalog: Catalog) -> None:
    data = MINIMAL | change
    assert accepted_by_loader(data, catalog)
    assert not list(validator.iter_errors(data))


@pytest.mark.parametrize("change", REFUSED, ids=str)
def test_refused(change: dict[str, Any], validator: Draft202012Validator, catalog: Catalog) -> None:
    data = MINIMAL | change
    assert not accepted_by_loader(data, catalog)
    assert list(validator.iter_errors(data))


def test_a_file_must_state_its_version(validator: Draft202012Validator) -> None:
    assert list(validator.iter_errors({"name": "a", "rules": MINIMAL["rules"]}))


def test_whole_specs(validator: Draft202012Validator, catalog: Catalog) -> None:
    assert not list(validator.iter_errors(load_document("f", text=FULL).data))
    dumped = parse_spec(FULL, catalog=catalog).model_dump(mode="json")
    assert not list(validator.iter_errors(dumped))


@pytest.mark.parametrize("path", SEEN, ids=lambda path: path.stem)
def test_the_schema_sees_the_golden_mistakes(path: Path, validator: Draft202012Validator) -> None:
    assert list(validator.iter_errors(load_document(path).data))


def test_every_key_is_described(catalog: Catalog) -> None:
    schema = json_schema(catalog)
    for name, definition in {"Spec": schema, **schema["$defs"]}.items():
        for key, value in definition.get("properties", {}).items():
            assert value.get("description") or "const" in value, f"{name}.{key}"


def test_nested_definitions_of_two_plugins_do_not_meet() -> None:
    class Mode(Enum):
        ONE = "one"

    def options(text: str) -> type[Options]:
        class Inner(Options):
            mode: Mode = Mode.ONE

        Inner.__doc__ = text

        class Outer(Options):
            inner: Inner | None = None

        return Outer

    class Two:
        def adapter_names(self) -> list[str]:
            return ["a/b", "c d"]

        def adapter_options(self, name: str) -> type[Options]:
            return options(name)

        def task_names(self) -> list[str]:
            return []

        def task_options(self, name: str) -> type[Options]:
            raise KeyError(name)

    schema = json_schema(Two())
    validator = Draft202012Validator(schema)
    rule = {"role": "x", "adapter": "a/b", "inner": {"mode": "one"}}
    assert not list(validator.iter_errors(MINIMAL | {"rules": [rule]}))
    assert list(validator.iter_errors(MINIMAL | {"rules": [{**rule, "inner": {"mode": "two"}}]}))
    assert list(validator.iter_errors(MINIMAL | {"rules": [{**rule, "adapter": "c d", "inner": {"x": 1}}]}))


def test_without_a_catalog_options_are_open() -> None:
    validator = Draft202012Validator(json_schema())
    data = MINIMAL | {"rules": [{"role": "x", "adapter": "any", "rank": -3}]}
    assert not list(validator.iter_errors(data))


def test_other_models_get_the_same_treatment(catalog: Catalog) -> None:
    class Study(BaseModel):
        arms: dict[str, Spec]
        rules: tuple[Rule, ...] = ()

    validator = Draft202012Validator(json_schema(catalog, Study))
    assert not list(validator.iter_errors({"arms": {"a": MINIMAL}}))
    assert list(validator.iter_errors({"arms": {"a": MINIMAL | {"rules": [{"role": "x", "adapter": "no"}]}}}))
    assert list(validator.iter_errors({"arms": {"a": {"name": "a", "rules": MINIMAL["rules"]}}}))


def patterns_in(schema: Any) -> Iterator[str]:
    values = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for value in values:
        yield from patterns_in(value)
    if isinstance(schema, dict):
        yield from (schema[key] for key in ("pattern",) if isinstance(schema.get(key), str))
        names = schema.get("patternProperties")
        yield from names if isinstance(names, dict) else ()


@pytest.mark.parametrize("name", ["spec", "study"])
def test_patterns_are_of_the_dialect_that_editors_know(name: str) -> None:
    """ECMA-262 has no `\\z`: an editor that meets one gives up on the whole schema."""
    schema = json.loads((Path(__file__).parents[2] / "specs" / f"{name}.schema.json").read_text("utf-8"))
    found = list(patterns_in(schema))
    assert found
    for pattern in found:
        re.compile(pattern)
        assert not re.search(r"\\[zZAG]|\(\?(?:P[<=>]|[a-zA-Z-]+[:)]|#|>)|\[\[:", pattern), pattern
