"""All checks of all types that a plugin describes, on tiny models that it need not bring."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgery.architecture import Architecture
from surgery.errors import PluginError, Problem, SurgeryError, nearest
from surgery.registry import Registry, load_registry
from surgery.testing.architecture_checks import Finding, agree_between_heads, examine
from surgery.testing.check_measured import compare_with_measured
from surgery.testing.modules import load_function, load_module
from surgery.testing.tiny import Tiny, classes_of, tiny_config, tiny_model

__all__ = ["check_plugin"]

Tell = Callable[[int, int, str], None]

_RETURNS = "return (model, inputs): a module with config.model_type, and keyword arguments as a mapping, or a tuple"


def check_plugin(  # noqa: PLR0913 - one for each option of the command line
    module: str,
    installed: Registry,
    *,
    config: Path | None = None,
    factory: str | None = None,
    heads: Sequence[str] = (),
    other: Sequence[str] = (),
    unused: Sequence[str] = (),
    tell: Tell | None = None,
) -> list[Finding]:
    """Check every architecture that `module` supplies.

    Args:
        module: an import path, a .py file, or a package's folder.
        installed: supplies the adapter types to try.
        config: a config.json to build from, instead of a shrunken default; the others of the plugin's types are left.
        factory: `MODULE:FUNCTION` that returns (model, inputs), instead of models that transformers builds.
        heads: model classes to build; all of the type's without any.
        other: patterns, full match, of names of parameters that need no role.
        unused: the same of parameters that a class has and its forward never uses.
        tell: told what is done, how much there is, and what it is.

    Raises:
        PluginError: the module cannot be loaded, supplies no architecture, or an argument names what is not there.
    """
    given = load_registry(extra=[load_module(module)], entry_points=False)
    described: dict[str, Architecture] = {kind: found.value for kind, found in given.architectures.items()}
    if not described:
        raise PluginError(
            "it supplies no architecture", module, "give it @hookimpl def surgery_architectures(): return [...]"
        )
    registry = Registry(installed.adapters, given.architectures, installed.models, {}, {})
    work = _Work(described, registry, _patterns(other, "--other"), _patterns(unused, "--unused"))
    with _one_thread():
        if factory is not None:
            return list(work.made(factory))
        configs: dict[str, Any] = {}
        failed: list[Finding] = []
        for kind, found in _configs(described, config).items():
            if isinstance(found, SurgeryError):
                failed.append(Finding("build", kind, "", found.problems))
            else:
                configs[kind] = found
        return failed + list(work.built(configs, heads, tell))


def _patterns(given: Sequence[str], option: str) -> tuple[str, ...]:
    for pattern in given:
        try:
            re.compile(pattern)
        except re.error as error:
            raise PluginError(
                f"{pattern!r} is no regular expression: {error}", option, r"for example '.*\bmixer\.A_log'"
            ) from None
    return tuple(given)


@contextmanager
def _one_thread() -> Iterator[None]:
    """On tiny models threads wait for one another longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Work:
    def __init__(
        self, described: Mapping[str, Architecture], registry: Registry, other: Sequence[str], unused: Sequence[str]
    ) -> None:
        self._described = described
        self._registry = registry
        self._other = other
        self._unused = unused

    def made(self, factory: str) -> Iterator[Finding]:
        """Check the model of an author's function."""
        tiny = _call(factory)
        kind = str(getattr(getattr(tiny.model, "config", None), "model_type", None))
        if kind not in self._described:
            known = nearest(kind, self._described)
            raise PluginError(f"the model's type is {kind!r}, which the plugin does not describe", factory, known)
        yield Finding("build", kind, tiny.name)
        yield from examine(kind, tiny, self._registry, self._other, self._unused)

    def built(self, configs: Mapping[str, Any], heads: Sequence[str], tell: Tell | None) -> Iterator[Finding]:
        """Check all chosen classes of each type."""
        classes = {kind: classes_of(kind) for kind in configs}
        known = {name for names in classes.values() for name in names}
        for name in heads:
            if name not in known:
                raise PluginError(f"no class of these types is called {name!r}", "--head", nearest(name, known))
        subjects = [(kind, name) for kind in configs for name in classes[kind] if not heads or name in heads]
        for index, (kind, name) in enumerate(subjects):
            if tell is not None:
                tell(index, len(subjects), f"{kind} {name}")
            if index == 0 or subjects[index - 1][0] != kind:
                tinies: list[Tiny] = []
                why = ""
            made = tiny_model(name, configs[kind])
            if isinstance(made, str):
                why = why or f"{name}: {made}"
                yield Finding("build", kind, name, skipped=made)
            else:
                tinies.append(made)
                yield Finding("build", kind, name)
                yield from examine(kind, made, self._registry, self._other, self._unused)
            if index + 1 == len(subjects) or subjects[index + 1][0] != kind:
                yield from self._at_the_end(kind, configs[kind], tinies, why)
        if tell is not None and subjects:
            tell(len(subjects), len(subjects), "done")

    def _at_the_end(self, kind: str, config: Any, tinies: Sequence[Tiny], why: str) -> Iterator[Finding]:
        if not tinies:
            what = f"no class of the type can be built and called: {why}"
            hint = "pass --config FILE with sizes that fit one another, or --factory MODULE:FUNCTION"
            yield Finding("build", kind, "", (Problem(what, kind, hint),))
        else:
            yield compare_with_measured(kind, config, tinies[-1].name, self._registry)
        if len(tinies) > 1:
            yield agree_between_heads(self._described[kind], kind, tinies, self._registry)


def _configs(described: Mapping[str, Architecture], config: Path | None) -> dict[str, Any]:
    """Return type -> configuration, or the error that says why there is none."""
    if config is not None:
        found = _read(config)
        if found.model_type not in described:
            known = nearest(str(found.model_type), described)
            raise PluginError(
                f"its type is {found.model_type!r}, which the plugin does not describe", str(config), known
            )
        return {found.model_type: found}
    table: dict[str, Any] = {}
    for kind in described:
        try:
            table[kind] = tiny_config(kind)
        except SurgeryError as error:
            table[kind] = error
    return table


def _read(path: Path) -> Any:
    from transformers import AutoConfig

    from surgery.planning.headers import read_settings

    file = path / "config.json" if path.is_dir() else path  # beside another config.json, too, the file that is named
    settings = read_settings(file)
    try:
        return AutoConfig.from_pretrained(str(file), trust_remote_code=False)
    except Exception as error:  # whatever a bad value sets off in transformers
        kind = settings.get("model_type")
        what = f"transformers cannot read it (type {kind!r}): {str(error).splitlines()[0] if str(error) else error!r}"
        raise PluginError(what[:300], str(path), "correct it, or pass --factory MODULE:FUNCTION") from error


def _call(factory: str) -> Tiny:
    function = load_function(factory)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            answer = function()
    except Exception as error:
        raise PluginError(
            f"it failed: {type(error).__name__}: {error}", factory, "run it with python to see where"
        ) from error
    if not (isinstance(answer, tuple | list) and len(answer) == 2 and isinstance(answer[0], nn.Module)):
        raise PluginError(f"it returned {type(answer).__name__}", factory, _RETURNS)
    model, inputs = answer
    args: tuple[Any, ...] = ()
    batch: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        batch = dict(inputs)
    elif isinstance(inputs, tuple | list):
        args = tuple(inputs)
    elif isinstance(inputs, torch.Tensor):
        args = (inputs,)
    else:
        raise PluginError(f"its inputs are {type(inputs).__name__}", factory, _RETURNS)
    model = model.eval()
    try:
        with torch.no_grad():
            model(*args, **batch)
    except Exception as error:
        raise PluginError(
            f"the model cannot be called with its inputs: {type(error).__name__}: {error}"[:300], factory, _RETURNS
        ) from error
    return Tiny(type(model).__name__, model, args, batch)
