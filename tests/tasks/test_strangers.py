"""Tasks of others: what was enough before is enough now, and what breaks the contract is told, and whom to tell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from surgery import Options, Spec, TaskType, hookimpl, load_registry, train
from surgery.errors import PluginError
from surgery.registry import Registry
from surgery.training import prepare
from surgery.training.fit import evaluate


class Plain(TaskType[Options]):
    """All that a task had to have before others were thought of."""

    name = "plain"
    summary = "a task of somebody else"
    columns = {"text": "text", "label": "label"}  # noqa: RUF012
    metric = "accuracy"
    greater_is_better = True
    auto_class = "AutoModelForSequenceClassification"

    def labels(self, rows: Any, options: Options) -> tuple[str, ...]:
        return tuple(sorted({row["label"] for row in rows}))

    def encode(self, rows: Any, tokenizer: Any, labels: Any, options: Options, where: Any) -> list[dict[str, Any]]:
        return [
            {"input_ids": tokenizer(row["text"])["input_ids"], "labels": labels.index(row["label"])} for row in rows
        ]

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none"), torch.ones_like(labels)

    def score(self, items: Mapping[str, Any]) -> dict[str, float]:
        assert set(items) == {"loss", "units", "prediction", "label"}
        assert items["prediction"].dtype == items["label"].dtype == items["units"].dtype == np.int64
        right = items["prediction"] == items["label"]
        return {"loss": float(items["loss"].mean()), "accuracy": float(right.mean())}


def registry_with(task: TaskType[Any]) -> Registry:
    @hookimpl
    def surgery_tasks() -> list[TaskType[Any]]:
        return [task]

    return load_registry(extra=[SimpleNamespace(surgery_tasks=surgery_tasks)])


def spec_for(folder: Path) -> Spec:
    return Spec(
        name="plain",
        model=str(folder),
        task={"kind": "plain"},
        training={"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
        rules=[{"role": r"head\.(transform|classifier)", "adapter": "full"}],
    )


DATA = {
    split: [{"text": f"the {label}", "label": label} for label in ("red", "blue", "new") * 4]
    for split in ("train", "validation", "test")
}


def test_a_task_of_before_works(bert: Path, tmp_path: Path) -> None:
    registry = registry_with(Plain())
    result = train(spec_for(bert), tmp_path / "run", registry=registry, data=DATA)
    assert set(result.metrics["test"]) == {"loss", "accuracy"}
    session = prepare(spec_for(bert), registry, data=DATA)
    assert (session.metric, session.greater_is_better) == ("accuracy", True)
    assert session.model.config.num_labels == 3


def broken(**methods: Any) -> TaskType[Any]:
    return type("Broken", (Plain,), methods)()


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ({"score": lambda self, items: {"loss": 0.0}}, "score returned no 'accuracy'"),
        ({"score": lambda self, items: {"accuracy": 0.0}}, "score returned no 'loss'"),
        (
            {"items": lambda self, examples, answers, labels, options: {"loss": np.zeros(3)}},
            "items returned no 'units'",
        ),
        (
            {"items": lambda self, *rest: {"loss": np.zeros(3), "units": np.ones(3), "prediction": np.zeros(2)}},
            r"items returned arrays of different shapes: loss \(3,\), prediction \(2,\)",
        ),
        (
            {"items": lambda self, *rest: {"loss": np.zeros((3, 1)), "units": np.ones((3, 1))}},
            r"items returned arrays of different shapes",
        ),
    ],
)
def test_what_breaks_the_contract_is_told(methods: Any, told: str, bert: Path) -> None:
    session = prepare(spec_for(bert), registry_with(broken(**methods)), data=DATA)
    with pytest.raises(PluginError, match=told) as caught:
        evaluate(session, "test")
    assert caught.value.where.startswith("task 'plain'")
    assert "--no-plugin" in caught.value.hint


@pytest.mark.parametrize("metrics", [{"f1": True}, {"accuracy": False}])
def test_metrics_must_hold_the_primary_one(metrics: Any) -> None:
    with pytest.raises(PluginError, match="metrics does not hold the primary metric 'accuracy' with its direction"):
        registry_with(broken(metrics=metrics))


def test_what_begins_with_an_underscore_is_not_for_the_model(bert: Path) -> None:
    def encode(self: Any, *arguments: Any) -> list[dict[str, Any]]:
        return [{**example, "_row": index} for index, example in enumerate(Plain.encode(self, *arguments))]

    def items(self: Any, examples: Any, answers: Any, labels: Any, options: Any) -> Any:
        assert [example["_row"] for example in examples] == list(range(12))
        return Plain.items(self, examples, answers, labels, options)

    def notes(self: Any, examples: Any, options: Any) -> list[str]:
        return [f"{len(examples)} rows"]

    session = prepare(spec_for(bert), registry_with(broken(encode=encode, items=items, notes=notes)), data=DATA)
    assert set(session.collator(session.examples["test"])) == {"input_ids", "labels"}
    assert evaluate(session, "test").items["label"].tolist() == [2, 0, 1] * 4
    assert session.notes[-3:] == ("train: 12 rows", "validation: 12 rows", "test: 12 rows")


def _raising(self: Any, *_: Any) -> Any:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ({"labels": lambda self, *_: None}, "labels returned None; wanted: a tuple of label names"),
        ({"labels": lambda self, *_: (1, 2)}, "labels returned 1 among the labels, a int"),
        ({"labels": _raising}, "labels failed: KeyError: 'no such thing'"),
        ({"encode": _raising}, "encode failed: KeyError"),
        ({"encode": lambda self, *_: [{"labels": 0}]}, "encode returned no 'input_ids' in example 0"),
        ({"encode": lambda self, *_: [{"input_ids": [], "labels": 0}]}, "encode returned a list without tokens"),
        ({"notes": lambda self, *_: (one for one in [1 // 0])}, "notes failed: ZeroDivisionError"),
    ],
)
def test_what_fails_while_data_are_read_names_task_and_method(methods: Any, told: str, bert: Path) -> None:
    with pytest.raises(PluginError, match=told) as caught:
        prepare(spec_for(bert), registry_with(broken(**methods)), data=DATA)
    assert caught.value.where.startswith("task 'plain'")
    assert (caught.value.__cause__ is not None) == ("failed" in told)  # what --debug shows


def _mean(self: Any, logits: torch.Tensor, labels: torch.Tensor) -> Any:
    return torch.nn.functional.cross_entropy(logits, labels), torch.ones_like(labels)


def _of(change: Any) -> Any:
    return lambda self, logits, labels: change(*Plain.losses(self, logits, labels))


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (_mean, r"losses of shape \(\); wanted: .* of shape \(4,\), one entry for each example \(reduction='none'"),
        (_of(lambda loss, units: (loss[:, None], units)), r"losses of shape \(4, 1\)"),
        (_of(lambda loss, units: (loss, units.sum())), r"units of shape \(\)"),
        (_of(lambda loss, units: (loss, units.float())), r"units of torch.float32; wanted: whole numbers"),
        (_of(lambda loss, units: (loss.long(), units)), r"losses of torch.int64"),
        (_of(lambda loss, units: (loss, len(units))), r"a int as units"),
        (_of(lambda loss, units: loss), r"losses returned a Tensor; wanted: \(losses, units\)"),
    ],
)
def test_losses_of_another_form_are_told(losses: Any, told: str, bert: Path, tmp_path: Path) -> None:
    registry = registry_with(broken(losses=losses))
    with pytest.raises(PluginError, match=told):
        evaluate(prepare(spec_for(bert), registry, data=DATA), "test")
    with pytest.raises(PluginError, match=told):
        train(spec_for(bert), tmp_path / "run", registry=registry, data=DATA)


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ({"answers": lambda self, *_: {"prediction": [0], "label": [0]}}, "1 values of 'prediction' for a batch of 4"),
        ({"answers": lambda self, *_: None}, "answers returned None"),
        ({"items": lambda self, *_: None}, "items returned None"),
        ({"score": _raising}, "score failed: KeyError"),
        ({"score": lambda self, items: {"accuracy": None, "loss": 0.0}}, "score returned None for 'accuracy'"),
    ],
)
def test_what_fails_while_a_model_is_scored_names_task_and_method(methods: Any, told: str, bert: Path) -> None:
    session = prepare(spec_for(bert), registry_with(broken(**methods)), data=DATA)
    with pytest.raises(PluginError, match=told) as caught:
        evaluate(session, "test")
    assert caught.value.where.startswith("task 'plain'")


def test_a_metric_that_is_not_a_number_is_told(bert: Path, tmp_path: Path) -> None:
    task = broken(score=lambda self, items: {**Plain.score(self, items), "accuracy": float("nan")})
    result = train(spec_for(bert), tmp_path / "run", registry=registry_with(task), data=DATA)
    assert result.metrics["test"]["accuracy"] is None
    assert [note for note in result.notes if note.startswith("warning: test accuracy is not a number, says score of")]


def test_memory_that_is_used_up_is_nobodys_mistake(bert: Path) -> None:
    def losses(self: Any, *_: Any) -> Any:
        raise torch.OutOfMemoryError("all 80 GB are used")

    session = prepare(spec_for(bert), registry_with(broken(losses=losses)), data=DATA)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(session, "test")
