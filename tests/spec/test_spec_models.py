"""Specs made in Python: frozen, strict, closed, with flat options; and what they are written back as."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from surgery.errors import SpecError
from surgery.spec import (
    Catalog,
    DataSpec,
    Exclude,
    ModelRef,
    Options,
    Rule,
    Spec,
    StrictModel,
    TaskSpec,
    TrainingSpec,
    compile_pattern,
    load_document,
    parse_spec,
    validate_document,
)

FULL = """\
version: 1
name: everything
seed: 7
model: {ref: bert-base-uncased, dtype: bfloat16}
task: {kind: text-classification, labels: 3}
data: {name: glue, config: sst2, columns: {text: sentence}, limit: {train: 100}}
training:
  epochs: 3
  learning_rate: 1e-4
  groups: [{role: head\\..*, learning_rate: 1e-3}]
  log_to: [tensorboard]
rules:
  - {role: attention\\.(query|value), layers: [0, 3, -1], adapter: lora, rank: 8, heads: [1, 2], expect: 6}
  - {target: .*, exclude: {role: head\\..*}, adapter: full, tied: share}
"""


@pytest.fixture
def spec(catalog: Catalog) -> Spec:
    return parse_spec(FULL, catalog=catalog)


def test_options_lie_flat_from_python() -> None:
    rule = Rule(role=r"attention\.query", adapter="lora", rank=8, heads=[1, 2])
    assert dict(rule.options) == {"rank": 8, "heads": (1, 2)}
    assert rule.model_dump()["rank"] == 8
    assert "options" not in rule.model_dump()
    assert "options" not in json.loads(rule.model_dump_json())
    assert Rule(**rule.model_dump()) == rule
    assert repr(rule).endswith("rank=8, heads=(1, 2))")


def test_a_number_keeps_its_kind(spec: Spec) -> None:
    assert spec.training is not None
    assert spec.training.learning_rate == 1e-4
    assert type(spec.training.epochs) is float


def test_specs_are_frozen_all_the_way_down(spec: Spec) -> None:
    with pytest.raises(ValidationError):
        spec.seed = 3
    options: Any = spec.rules[0].options
    with pytest.raises(TypeError, match="read-only"):
        options.update(rank=1)
    with pytest.raises(TypeError, match="read-only"):
        options.pop("rank")
    with pytest.raises(TypeError, match="read-only"):
        options["rank"] = 1
    with pytest.raises(TypeError, match="read-only"):
        options |= {"rank": 1}
    assert spec.data is not None
    with pytest.raises(TypeError, match="read-only"):
        spec.data.columns["text"] = "x"  # type: ignore[index]


def test_specs_hash_pickle_and_copy(spec: Spec) -> None:
    assert pickle.loads(pickle.dumps(spec)) == spec == copy.deepcopy(spec)
    assert len({spec, copy.deepcopy(spec)}) == 1
    assert {Spec(name="a", rules=[Rule(role="x", adapter="full")])}


def test_yaml_and_json_come_back_equal(spec: Spec, catalog: Catalog) -> None:
    assert parse_spec(spec.to_yaml(), catalog=catalog) == spec
    assert parse_spec(spec.model_dump_json(), catalog=catalog) == spec
    assert parse_spec(json.dumps(spec.model_dump(mode="json"), indent="\t"), catalog=catalog) == spec
    assert parse_spec(spec.canonical_json(), catalog=catalog) == spec


def test_canonical_json_does_not_depend_on_the_order_of_keys(catalog: Catalog) -> None:
    one = parse_spec("version: 1\nname: a\nrules: [{role: x, adapter: lora, rank: 1, alpha: 2.0}]", catalog=catalog)
    two = parse_spec("rules: [{alpha: 2.0, rank: 1, adapter: lora, role: x}]\nname: a\nversion: 1", catalog=catalog)
    assert one.canonical_json() == two.canonical_json()
    assert json.loads(one.canonical_json())["seed"] == 0


def test_model_may_be_a_plain_name() -> None:
    rules = [{"role": "x", "adapter": "full"}]
    assert Spec(name="a", model="gpt2", rules=rules).model == ModelRef(ref="gpt2")


def test_every_problem_is_told_from_python_too() -> None:
    with pytest.raises(SpecError) as caught:
        Spec(name="a b", seed=-1, rules=[{"adapter": "full"}, {"role": "(", "adapter": 3}])
    assert [problem.where for problem in caught.value.problems] == [
        "name",
        "seed",
        "rules[0]",
        "rules[1].role",
        "rules[1].adapter",
    ]


@pytest.mark.parametrize(
    ("model", "keys", "what"),
    [
        (Exclude, {}, "exclude needs 'role' or 'target'"),
        (Rule, {"role": "x", "adapter": "a", "x": object()}, "x must be plain data"),
        (Rule, {"role": "x", "adapter": "a", "x": float("nan")}, "x must be a finite number"),
        (Rule, {"role": "x", "adapter": "a", "x": 2**70}, "x must be an integer of at most 64 bits"),
        (Rule, {"role": "x", "adapter": "a", "x": "\ud800"}, "x must not hold the control character U+D800"),
        (Rule, {"role": "x", "adapter": "a", "x": {1: 2}}, "x must have only text as keys"),
        (TrainingSpec, {"learning_rate": 1.0}, "training needs 'steps' or 'epochs'"),
        (TrainingSpec, {"learning_rate": 1.0, "steps": True}, "steps must be a whole number, not true"),
        (TrainingSpec, {"learning_rate": float("inf"), "steps": 1}, "learning_rate must be a finite number, not inf"),
        (TaskSpec, {}, "key 'kind' is missing"),
        (DataSpec, {"limit": {"train": 0}}, "train must be at least 1, not 0"),
        (DataSpec, {"name": "a\0b"}, "name must not hold the control character U+0000"),
    ],
)
def test_mistakes_in_python(model: type[StrictModel], keys: dict[str, Any], what: str) -> None:
    with pytest.raises(SpecError) as caught:
        model(**keys)
    assert caught.value.what.startswith(what)


def test_a_self_containing_value_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(SpecError, match="levels deep"):
        Rule(role="x", adapter="a", x=loop)


def test_options_come_back_from_a_rule() -> None:
    class ListOptions(Options):
        names: list[str]
        pairs: dict[str, int]
        ranks: tuple[int, ...] | None = None

    rule = Rule(role="x", adapter="a", names=["a"], pairs={"b": 1}, ranks=[1])
    assert ListOptions(**rule.options) == ListOptions(names=["a"], pairs={"b": 1}, ranks=(1,))


def test_an_authors_own_checks_are_told_in_place() -> None:
    class Checked(Options):
        rank: int = 1
        pattern: str = ".*"

        @field_validator("rank")
        @classmethod
        def _even(cls, value: int) -> int:
            if value % 2:
                raise ValueError(f"must be even, not {value}")
            return value

        @field_validator("pattern")
        @classmethod
        def _pattern(cls, value: str) -> str:
            compile_pattern(value)
            return value

    with pytest.raises(SpecError, match="rank must be even, not 3"):
        Checked(rank=3)
    with pytest.raises(SpecError, match="not a usable regular expression"):
        Checked(pattern="(")


def test_rules_nest_in_another_model(catalog: Catalog) -> None:
    class Arm(StrictModel):
        rules: tuple[Rule, ...]
        task: TaskSpec | None = None

    class Study(BaseModel):
        arms: dict[str, Arm]

    text = "arms:\n  my arm:\n    rules: [{role: x, adapter: lora, rank: -1}]\n    task: {kind: x}\n    tsk: 1\n"
    with pytest.raises(SpecError) as caught:
        validate_document(load_document("study.yaml", text=text), Study, catalog)
    assert [(problem.where, problem.what) for problem in caught.value.problems] == [
        ('study.yaml:3:44  arms["my arm"].rules[0].rank', "rank must be at least 1, not -1"),
        ('study.yaml:4:18  arms["my arm"].task.kind', "unknown task 'x'"),
        ('study.yaml:5:5  arms["my arm"].tsk', "unknown key 'tsk'"),
    ]


def test_without_a_catalog_only_the_core_is_checked() -> None:
    spec = parse_spec("version: 1\nname: a\nrules: [{role: x, adapter: anything, rank: -3}]")
    assert spec.rules[0].options["rank"] == -3
    with pytest.raises(SpecError, match="expect must be at least 1"):
        parse_spec("version: 1\nname: a\nrules: [{role: x, adapter: anything, expect: -3}]")


def test_many_problems_are_cut_short(catalog: Catalog) -> None:
    text = "version: 1\nname: a\nrules: [{role: x, adapter: full}]\n" + "".join(f"k{i}: 1\n" for i in range(200))
    with pytest.raises(SpecError) as caught:
        parse_spec(text, catalog=catalog)
    assert len(caught.value.problems) == 51
    assert caught.value.problems[-1].what == "and 150 more problems"


@pytest.mark.parametrize(("name", "suggested"), [("..", "bert-lora"), ("-rf", "rf"), ("._a", "a"), ("--", "bert-lora")])
def test_a_name_is_no_path_and_no_option(name: str, suggested: str) -> None:
    with pytest.raises(SpecError) as caught:
        Spec(name=name, rules=[Rule(role=".*", adapter="full")])
    assert "must begin with a letter or a digit" in caught.value.what
    assert suggested in caught.value.hint
