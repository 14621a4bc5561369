"""The frozen result of asking every plugin once: names -> values with provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from surgery.adapter import AdapterType
from surgery.architecture import Architecture
from surgery.errors import PluginError, SpecError, SurgeryError, nearest
from surgery.registry.contracts import DataSource, ModelSource, TaskType
from surgery.spec import Options, Rule

__all__ = ["Provenance", "Registered", "Registry"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which plugin of which distribution supplied something."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}" if self.version else self.distribution


@dataclass(frozen=True, slots=True)
class Registered(Generic[T]):
    """A value and where it came from."""

    value: T
    provenance: Provenance


@dataclass(frozen=True)
class Registry:
    """Everything the installed plugins supply. Immutable; also the `Catalog` that specs are checked against."""

    adapters: Mapping[str, Registered[AdapterType[Any]]]
    architectures: Mapping[str, Registered[Architecture]]
    models: Mapping[str, Registered[ModelSource]]
    datasets: Mapping[str, Registered[DataSource]]
    tasks: Mapping[str, Registered[TaskType[Any]]]
    plugins: tuple[Provenance, ...] = ()

    def adapter(self, name: str) -> AdapterType[Any]:
        """Return the adapter type called `name`, or raise PluginError naming the nearest."""
        return _get(self.adapters, name, "adapter")

    def task(self, name: str) -> TaskType[Any]:
        """Return the kind of task called `name`, or raise PluginError naming the nearest."""
        return _get(self.tasks, name, "task")

    def dataset(self, name: str) -> DataSource:
        """Return the data source called `name`, or raise PluginError naming the nearest."""
        return _get(self.datasets, name, "data set")

    def architecture(self, model_type: str | None) -> Registered[Architecture] | None:
        """Return the architecture for a `model_type`, or None."""
        return self.architectures.get(model_type or "")

    def resolve_model(self, ref: str) -> Path | str | None:
        """Return the folder or hub name that `ref` means to the installed sources of models, or None.

        A folder is certain, a hub name is a guess: a plugin's bundled weights win over a name that looks like the
        hub's.
        """
        answers = [source.value.resolve(ref) for _, source in sorted(self.models.items())]
        found = [answer for answer in answers if answer is not None]
        return min(found, key=lambda answer: isinstance(answer, str), default=None)

    def adapter_names(self) -> Sequence[str]:
        return sorted(self.adapters)

    def adapter_options(self, name: str) -> type[Options]:
        return self.adapter(name).options

    def task_names(self) -> Sequence[str]:
        return sorted(self.tasks)

    def task_options(self, name: str) -> type[Options]:
        return self.task(name).options

    def origin(self, word: str, name: str) -> str:
        """Return who supplies the `adapter` or `task` called `name`, as errors say it: adapter 'lora' (my-dist 0.1)."""
        return f"{word} {name!r} ({self._provenance(word, name)})"

    def failure(self, word: str, name: str, what: str, site: str = "") -> PluginError:
        """Return the error that an `adapter` or `task` has failed, where, and whom to tell."""
        where = f"{self.origin(word, name)} on {site}" if site else self.origin(word, name)
        source = self._provenance(word, name)
        return PluginError(
            what, where, f"tell the authors of {source.distribution}, or go on without it: --no-plugin {source.plugin}"
        )

    def _provenance(self, word: str, name: str) -> Provenance:
        table: Mapping[str, Registered[Any]] = self.adapters if word == "adapter" else self.tasks
        return table[name].provenance

    def bind(self, rule: Rule, where: str) -> Options:
        """Return the rule's flat options as its adapter's own validated model.

        Raises:
            PluginError: no such adapter, or one whose check of its options fails.
            SpecError: an option that the adapter does not take.
        """
        try:
            return self.adapter_options(rule.adapter)(**dict(rule.options))
        except SpecError as error:
            raise SpecError.of(
                [replace(problem, where=".".join(filter(None, (where, problem.where)))) for problem in error.problems]
            ) from None
        except SurgeryError:
            raise
        except Exception as error:
            what = f"checking the options failed: {type(error).__name__}: {error}"
            raise self.failure("adapter", rule.adapter, what, where) from error


def _get(table: Mapping[str, Registered[T]], name: str, kind: str) -> T:
    if name not in table:
        raise PluginError(f"no {kind} is called {name!r}", hint=nearest(name, table))
    return table[name].value
