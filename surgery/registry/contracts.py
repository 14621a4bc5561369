"""What a plugin may supply besides adapters and architectures: models, data sets, and tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

from surgery.errors import SpecError, nearest
from surgery.registry.generation import Generation
from surgery.registry.twins import Twins
from surgery.spec import Options

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["DataSource", "ModelSource", "Rows", "TaskType"]

Rows: TypeAlias = Sequence[Mapping[str, Any]]
"""Examples as the data set has them: one mapping of column name to value each."""

OptionsT = TypeVar("OptionsT", bound=Options)


class ModelSource(ABC):
    """A named place that models come from, such as transformers' own loading or a plugin's bundled weights.

    `names` holds the models' names where they are few: a misspelt one is then answered with the right one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    names: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def resolve(self, ref: str) -> Path | str | None:
        """Return the folder (or hub name) that `ref` means here, or None when it is not this source's."""

    def skeleton(self, ref_or_config: Any, auto_class: str | None = None) -> torch.nn.Module | None:
        """Return the model on the meta device, without reading a weight, or None when this source cannot.

        Args:
            ref_or_config: a folder, the path of a `config.json`, a name, or a configuration object.
            auto_class: the Auto class to build; None means the class that the configuration names.
        """
        return None

    def twins(self, config: Any, class_name: str) -> Twins | None:
        """Return small models built like one whose layers are to be measured, or None when this source cannot.

        Whatever goes wrong while they are built means None: without a measurement, less is known, and nothing is lost.

        Args:
            config: the model's configuration, an object or what its `config.json` holds.
            class_name: the model's class; "" where only a file is known.
        """
        return None


class DataSource(ABC):
    """A named data set that a plugin brings."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def load(self) -> Mapping[str, Rows]:
        """Return split name (`train`, `validation`, `test`) -> rows. Deterministic."""


class TaskType(ABC, Generic[OptionsT]):
    """A kind of task: what its data looks like, which model class it needs, and how predictions are scored.

    An *example* is what the model sees, an *item* what is scored: one item may be several examples (windows of a long
    text). `labels`, `encode`, `losses` and `score` must be written; the other methods have a meaning for tasks with one
    class label for each example, and for tasks that are scored by their losses alone.

    Attributes:
        name: what `task: {kind: ...}` says.
        summary: one line for `surgery plugins`.
        options: the Pydantic model of the keys beside `kind`.
        columns: what the task calls its columns -> the default column name; "" marks a column that is optional and
            absent unless the spec names it. The first column holds the text that keeps duplicates in one split.
        metric: name of the primary metric, a key of what `score` returns.
        greater_is_better: direction of the primary metric.
        metrics: metrics that the option `metric` may name -> whether more of it is better; empty where there is no
            choice.
        auto_class: name of the transformers Auto class, such as `AutoModelForSequenceClassification`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[type[Options]] = Options
    columns: ClassVar[Mapping[str, str]]
    metric: ClassVar[str]
    greater_is_better: ClassVar[bool]
    metrics: ClassVar[Mapping[str, bool]] = MappingProxyType({})
    auto_class: ClassVar[str]

    @abstractmethod
    def labels(self, rows: Rows, options: OptionsT) -> tuple[str, ...]:
        """Return the label names that the training rows hold, in a fixed order; empty where the task has none."""

    @abstractmethod
    def encode(
        self, rows: Rows, tokenizer: Any, labels: Sequence[str], options: OptionsT, where: Callable[[int], str]
    ) -> list[dict[str, Any]]:
        """Return model-ready examples (`input_ids`, `labels`, ...), each a dict of Python lists or ints.

        `where` says of a row's index where the row stands, such as `train.jsonl:17`. Positions without a loss have
        the label -100. Keys that begin with `_` stay with the example, for `answers`, `items` and `notes`: the model is
        not given them.

        Raises:
            DataError: a value that cannot be used (a label unseen in training, a text that is no text), with its row.
        """

    @abstractmethod
    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (loss summed per example in nats, number of predicted units per example), each of shape (batch,).

        The units of an example are its labels that are not -100.
        """

    @abstractmethod
    def score(self, items: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return metric name -> value from per-item arrays: `loss`, `units`; with labels also `prediction`, `label`.

        A study calls it on the same items drawn again with replacement, thousands of times: everything a metric needs
        must be in the arrays, and any choice of items must have a value.
        """

    def primary(self, options: OptionsT) -> tuple[str, bool]:
        """Return the name of the metric that decides, and whether more of it is better.

        Raises:
            SpecError: the option `metric` names one that is not among `metrics`.
        """
        chosen = getattr(options, "metric", None) if self.metrics else None
        if chosen is None:
            return self.metric, self.greater_is_better
        if chosen not in self.metrics:
            known = " or ".join(map(repr, self.metrics))
            what = f"task {self.name!r} has no metric {chosen!r}: it must be {known}"
            raise SpecError(what, "task.metric", nearest(str(chosen), self.metrics))
        return chosen, self.metrics[chosen]

    def outputs(self, labels: Sequence[str], options: OptionsT) -> int | None:
        """Return how many outputs the head gets; None leaves that to the model's configuration."""
        return len(labels) or None

    def logits(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what `losses` and `answers` work on, one tensor (batch, ...), from what the model returned.

        Args:
            output: the model's output.
            inputs: what the model was called with, padded.
        """
        logits: torch.Tensor = output.logits
        return logits

    def answers(
        self,
        logits: torch.Tensor,
        examples: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
        options: OptionsT,
    ) -> Mapping[str, Sequence[Any]]:
        """Return name -> what the model answers to each example of a batch; any value that `items` understands.

        Here: with labels the `prediction` (argmax over the last axis) and the `label`, else nothing.

        Args:
            logits: of the batch, padded; on the model's device.
            examples: the batch's examples as `encode` made them.
            labels: the label names.
            options: the spec's.
        """
        if not labels:
            return {}
        return {
            "prediction": logits.argmax(dim=-1).tolist(),
            "label": [example["labels"] for example in examples],
        }

    def items(
        self,
        examples: Sequence[Mapping[str, Any]],
        answers: Mapping[str, Sequence[Any]],
        labels: Sequence[str],
        options: OptionsT,
    ) -> Mapping[str, np.ndarray]:
        """Return the per-item arrays that `score` takes, each of shape (items,), `loss` and `units` among them.

        Here every example is an item. An array that is named like a metric is one whose mean that metric is.

        Args:
            examples: all examples of a split.
            answers: `loss`, `units`, and what `answers` returned, in the order of the examples.
            labels, options: as for `answers`.
        """
        import numpy as np

        return {name: np.asarray(values) for name, values in answers.items()}

    def notes(self, examples: Sequence[Mapping[str, Any]], options: OptionsT) -> Sequence[str]:
        """Return what the user should know of a split's encoded examples, such as how many texts were cut."""
        return ()

    def generation(self, rows: Rows, tokenizer: Any, options: OptionsT) -> Generation | None:
        """Return what a model writes at the final evaluation of `rows`, or None where its losses say everything.

        `score` is then called twice: with `loss` and `units` alone while training, and with the arrays of
        `Generation.measure` beside them at the end. A model that generates must be a decoder.
        """
        return None
