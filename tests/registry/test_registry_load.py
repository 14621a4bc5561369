"""Loading plugins: from distributions on the path, all of them or an error that names the culprit and the way out."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import Field, ValidationInfo, field_validator, model_validator

from surgery import Architecture, Options, Rule, hookimpl, load_registry, load_spec
from surgery.errors import PluginError, SpecError
from surgery.registry.load import AUTOLOAD_SWITCH

BUILT_IN = load_registry()

ADAPTER = """
import surgery

class Mine(surgery.AdapterType):
    name = {name!r}
    summary = "for tests"
    def claims(self, site): return True
    def parameters(self, site, options): return 0
    def build(self, site, options, pristine, generator): raise NotImplementedError

@surgery.hookimpl
def surgery_adapters():
    return [Mine()]
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with one plugin module on the path."""

    def act(distribution: str, entry: str, module: str, source: str, version: str = "1.2") -> None:
        folder = tmp_path / distribution
        info = folder / f"{distribution}-{version}.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source, "utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", "utf-8")
        (info / "entry_points.txt").write_text(f"[surgery]\n{entry} = {module}\n", "utf-8")
        monkeypatch.syspath_prepend(str(folder))

    before = set(sys.modules)
    monkeypatch.delenv(AUTOLOAD_SWITCH, raising=False)
    yield act
    for name in set(sys.modules) - before:
        if name.startswith("plugin_"):
            del sys.modules[name]


def error(*arguments: Any, **options: Any) -> PluginError:
    with pytest.raises(PluginError) as caught:
        load_registry(*arguments, **options)
    return caught.value


def test_an_installed_plugin_is_found_with_its_provenance(install: Install) -> None:
    install("acme-surgery", "acme", "plugin_acme", ADAPTER.format(name="acme"), "3.1")
    registry = load_registry()
    found = registry.adapters["acme"].provenance
    assert (found.plugin, found.distribution, found.version) == ("acme", "acme-surgery", "3.1")
    assert found in registry.plugins
    assert str(found) == "acme-surgery 3.1"
    assert set(BUILT_IN.adapters) < set(registry.adapters)


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise ValueError('at import')", "ValueError: at import"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_plugin_that_cannot_be_imported_stops_unless_blocked(install: Install, source: str, cause: str) -> None:
    install("acme-surgery", "acme", "plugin_broken", source)
    problem = error()
    assert "plugin 'acme' of acme-surgery 1.2 cannot be imported" in problem.what
    assert cause in problem.what
    assert "--no-plugin acme" in problem.hint
    assert set(load_registry(block=["acme"]).adapters) == set(BUILT_IN.adapters)


def test_an_interrupt_during_an_import_stays_an_interrupt(install: Install) -> None:
    install("acme-surgery", "acme", "plugin_interrupt", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_registry()


def test_two_distributions_of_one_entry_point_are_both_named_and_can_be_blocked(install: Install) -> None:
    install("acme-surgery", "twice", "plugin_one", ADAPTER.format(name="one"))
    install("other-surgery", "twice", "plugin_two", ADAPTER.format(name="two"))
    problem = error()
    assert "two distributions name a plugin 'twice'" in problem.what
    assert "acme-surgery 1.2" in problem.what
    assert "other-surgery 1.2" in problem.what
    assert "--no-plugin twice" in problem.hint
    assert set(load_registry(block=["twice"]).adapters) == set(BUILT_IN.adapters)


def test_two_adapters_of_one_name_are_an_error_that_names_both(install: Install) -> None:
    install("acme-surgery", "acme", "plugin_clash", ADAPTER.format(name="lora"))
    problem = error()
    assert problem.what.startswith("'lora' is supplied twice: by acme-surgery 1.2 (plugin 'acme')")
    assert "(plugin 'lora')" in problem.what
    assert load_registry(block=["acme"]).adapters["lora"].provenance == BUILT_IN.adapters["lora"].provenance
    assert load_registry(block=["lora"]).adapters["lora"].provenance.distribution == "acme-surgery"


def test_one_module_under_two_entry_points_is_asked_once(install: Install) -> None:
    install("acme-surgery", "first", "plugin_shared", ADAPTER.format(name="shared"))
    install("acme-surgery-too", "second", "plugin_shared", ADAPTER.format(name="shared"))
    assert "shared" in load_registry().adapters


def test_two_architectures_of_one_type_are_an_error() -> None:
    plugin = _module("plugin_arch", surgery_architectures=lambda: [Architecture(("bert",), "", {}, {})])
    assert "'bert' is supplied twice" in error([plugin]).what


def test_the_switch_turns_everything_off_but_what_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTOLOAD_SWITCH, "1")
    assert load_registry().plugins == ()
    assert set(load_registry(only=["lora"]).adapters) == {"lora"}
    for value in ("0", ""):
        monkeypatch.setenv(AUTOLOAD_SWITCH, value)
        assert load_registry().plugins == BUILT_IN.plugins


def test_only_and_block() -> None:
    assert "lora" not in load_registry(block=["lora"]).adapters
    assert [found.plugin for found in load_registry(entry_points=False, only=["full", "bias"]).plugins] == [
        "bias",
        "full",
    ]
    assert load_registry(entry_points=False).plugins == ()


@pytest.mark.parametrize("keyword", ["only", "block"])
def test_a_name_that_is_not_installed_is_an_error(keyword: str) -> None:
    problem = error(**{keyword: ["lorra"]})
    assert problem.what == "no installed plugin is called 'lorra'"
    assert problem.hint == "did you mean 'lora'?"


def test_everything_has_provenance_and_tables_are_sorted() -> None:
    for table in (BUILT_IN.adapters, BUILT_IN.architectures, BUILT_IN.models, BUILT_IN.datasets, BUILT_IN.tasks):
        assert list(table) == sorted(table)
        for registered in table.values():
            assert registered.provenance in BUILT_IN.plugins
    assert {found.distribution for found in BUILT_IN.plugins} == {"model-surgery"}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+.*", found.version) for found in BUILT_IN.plugins)


def test_unknown_names_are_errors_with_the_nearest() -> None:
    with pytest.raises(PluginError, match="no adapter is called 'lorra'\n  hint: did you mean 'lora'?"):
        BUILT_IN.adapter("lorra")
    with pytest.raises(PluginError, match="no task is called"):
        BUILT_IN.task("text-clasification")
    assert BUILT_IN.architecture("no-such-type") is None
    assert BUILT_IN.architecture(None) is None


# What plugins get wrong ---------------------------------------------------------------------------------------------


def _module(name: str, *, marked: bool = True, **functions: Any) -> ModuleType:
    module = ModuleType(name)
    for key, function in functions.items():
        setattr(module, key, hookimpl(function) if marked else function)
    return module


def _kind(**members: Any) -> Any:
    lora = type(BUILT_IN.adapter("full"))
    return type("Kind", (lora,), {"name": "kind", **members})()


def _nothing() -> list[Any]:
    return []


def test_a_misspelt_hook_is_an_error() -> None:
    problem = error([_module("plugin_typo", surgery_adaptors=_nothing, surgery_adapters=_nothing)])
    assert "implements an unknown hook 'surgery_adaptors'" in problem.what
    assert problem.hint == "did you mean 'surgery_adapters'?"


def test_an_unmarked_hook_is_an_error() -> None:
    plugin = _module("plugin_unmarked", surgery_adapters=_nothing)
    plugin.surgery_architectures = lambda: [1]  # type: ignore[attr-defined]
    problem = error([plugin])
    assert "defines 'surgery_architectures' without marking it" in problem.what
    assert problem.hint == "put @surgery.hookimpl above it"


@pytest.mark.parametrize("others", [{}, {"surgery_models": _nothing}])
@pytest.mark.parametrize("name", ["surgery_adaptors", "surgery_adapter", "surgery_architectuers", "surgery_task"])
def test_an_unmarked_misspelt_hook_is_an_error_also_beside_a_good_one(name: str, others: dict[str, Any]) -> None:
    plugin = _module("plugin_typo", **others)
    setattr(plugin, name, list)
    problem = error([plugin])
    assert f"defines {name!r}, which is no hook" in problem.what
    assert re.fullmatch(r"did you mean 'surgery_\w+s'\? If so, put @surgery.hookimpl above it", problem.hint)


def test_a_function_that_is_about_something_else_is_no_hook() -> None:
    plugin = _module("plugin_helpers", surgery_adapters=_nothing)
    plugin.surgery_version = plugin.surgery_adapter_of_a_site = list  # type: ignore[attr-defined]
    plugin.surgery_dataset = "text"  # type: ignore[attr-defined]
    load_registry([plugin])


@pytest.mark.parametrize("functions", [{}, {"surgery_version": list}])
def test_a_plugin_without_any_hook_is_an_error(functions: dict[str, Any]) -> None:
    problem = error([_module("plugin_idle", marked=False, **functions)])
    assert "implements no hook" in problem.what
    assert problem.where == ", ".join(functions)
    assert "@surgery.hookimpl" in problem.hint


def test_a_hook_with_arguments_is_an_error() -> None:
    problem = error([_module("plugin_arguments", surgery_adapters=lambda manager: [])])
    assert "surgery_adapters(manager) has arguments" in problem.what
    assert problem.hint == "hooks take no arguments"


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "must return a list, not None"),
        ("lora", "must return a list, not 'lora'"),
        (SimpleNamespace(name="x"), "must return a list"),
        (["lora"], "must return instances of AdapterType, not 'lora'"),
        ([type(BUILT_IN.adapter("full"))], "must return instances of AdapterType"),
        ([_kind(name=None)], "None is no name"),
        ([_kind(name="")], "'' is no name"),
        ([_kind(name="My Adapter")], "a name is letters, digits and any of _ . : -, without spaces"),
        ([_kind(summary=None)], "summary must be one line of text, not None"),
        ([_kind(summary=" ")], "summary must be one line of text"),
        ([_kind(summary="one\ntwo")], "summary must be one line of text"),
        ([_kind(options=dict)], "options must be a class derived from surgery.Options"),
    ],
)
def test_a_wrong_value_is_an_error(returned: Any, said: str) -> None:
    problem = error([_module("plugin_value", surgery_adapters=lambda: returned)])
    assert said in problem.what
    assert "given in Python" in problem.what


def test_a_hook_that_raises_is_an_error() -> None:
    def surgery_adapters() -> list[Any]:
        raise KeyError("gone")

    problem = error([_module("plugin_raises", surgery_adapters=surgery_adapters)])
    assert "surgery_adapters() failed: KeyError: 'gone'" in problem.what
    assert "--no-plugin plugin_raises" in problem.hint


def test_options_may_not_reuse_a_core_key() -> None:
    class Clashing(Options):
        layers: int = 1
        expect: int = 2
        fine: int = 3

    problem = error([_module("plugin_keys", surgery_adapters=lambda: [_kind(options=Clashing)])])
    assert "re-uses the core keys expect, layers as options" in problem.what


@pytest.mark.parametrize("alias", [{"alias": "layers"}, {"validation_alias": "layers"}])
def test_nor_by_an_alias(alias: dict[str, Any]) -> None:
    class Clashing(Options):
        depth: int = Field(default=3, **alias)

    problem = error([_module("plugin_keys", surgery_adapters=lambda: [_kind(options=Clashing)])])
    assert "re-uses the core keys layers as options" in problem.what


class WrongType(Options):
    name: str = "x"
    rank: int = "four"  # type: ignore[assignment]


class OutOfBounds(Options):
    other: int
    rank: int = Field(default=0, gt=0, alias="r")


class NoneForANumber(Options):
    rank: int = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (WrongType, "a default of WrongType is not valid: rank must be a whole number, not the text 'four'"),
        (OutOfBounds, "a default of OutOfBounds is not valid: r must be at least 1, not 0"),
        (NoneForANumber, "a default of NoneForANumber is not valid: rank must be a whole number, not null"),
    ],
)
def test_a_default_must_be_a_value_that_the_option_accepts(options: type[Options], said: str) -> None:
    assert said in error([_module("plugin_defaults", surgery_adapters=lambda: [_kind(options=options)])]).what


def test_defaults_are_not_held_to_what_the_user_has_yet_to_say() -> None:
    class Either(Options):
        rank: int | None = None
        ratio: float | None = None

        @model_validator(mode="after")
        def _one(self) -> Either:
            if (self.rank is None) == (self.ratio is None):
                raise ValueError("give rank or ratio")
            return self

    class After(Options):
        rank: int
        alpha: float = 1.0

        @field_validator("alpha")
        @classmethod
        def _fits(cls, value: float, info: ValidationInfo) -> float:
            return value * info.data["rank"]  # type: ignore[no-any-return]

    for options in (Either, After):
        load_registry([_module("plugin_defaults", surgery_adapters=lambda chosen=options: [_kind(options=chosen)])])


class Checked(Options):
    rank: int = 2
    a: int = 1

    @field_validator("rank")
    @classmethod
    def _known(cls, value: int) -> int:
        if value > 9:
            raise ValueError("no more than nine are known")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Checked:
        if self.a > self.rank:
            raise ValueError("a must not be above rank")
        return self


@pytest.mark.parametrize(
    ("options", "in_python", "in_a_file"),
    [
        ("a: 5", "rules[0]: a must not be above rank", "spec.yaml:4:5  rules[0]: a must not be above rank"),
        ("rank: 10", "rules[0].rank: no more than nine are known", "spec.yaml:4:36  rules[0].rank: no more than nine"),
        (
            "rank: x",
            "rules[0].rank: rank must be a whole number",
            "spec.yaml:4:36  rules[0].rank: rank must be a whole",
        ),
    ],
)
def test_an_authors_own_words_stand_once_behind_their_place(
    options: str, in_python: str, in_a_file: str, tmp_path: Path
) -> None:
    registry = load_registry([_module("plugin_own", surgery_adapters=lambda: [_kind(options=Checked)])])
    key, _, value = options.partition(": ")
    with pytest.raises(SpecError) as caught:
        registry.bind(Rule(role="x", adapter="kind", **{key: int(value) if value.isdigit() else value}), "rules[0]")
    assert str(caught.value).startswith(in_python)
    path = tmp_path / "spec.yaml"
    path.write_text(f"version: 1\nname: x\nrules:\n  - {{role: x, adapter: kind, {options}}}\n", "utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(path, registry)
    assert in_a_file in str(caught.value)


def test_each_hook_is_called_once() -> None:
    calls: list[int] = []

    def surgery_adapters() -> list[Any]:
        calls.append(1)
        return []

    load_registry([_module("plugin_counted", surgery_adapters=surgery_adapters)])
    assert calls == [1]


def test_a_plugin_may_be_an_object() -> None:
    class Plugin:
        @hookimpl
        def surgery_adapters(self) -> list[Any]:
            return [_kind(name="of-an-object")]

    assert "of-an-object" in load_registry([Plugin()]).adapters
