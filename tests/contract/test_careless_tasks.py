"""`check_task` says what is wrong with a task, and of a correct one nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from surgery import Options, TaskType
from surgery.errors import PluginError
from surgery.testing import check_task

ROWS = [{"text": f"the {label} house {n}", "label": label} for n in range(3) for label in ("red", "blue")]


class Correct(TaskType[Options]):
    name = "correct"
    summary = "a task that keeps its contract"
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
        right = items["prediction"] == items["label"]
        return {"loss": float(items["loss"].mean()), "accuracy": float(right.mean())}


def _recall(self: Any, items: Mapping[str, Any]) -> dict[str, float]:
    with np.errstate(invalid="ignore"):
        of = items["label"] == 0
        share = np.float64((of & (items["prediction"] == 0)).sum()) / np.float64(of.sum())
    return {**Correct.score(self, items), "accuracy": float(share)}


def _doubled(loss: torch.Tensor, units: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return loss, 2 * units


def _anew(self: Any, *arguments: Any) -> list[dict[str, Any]]:
    self.calls = getattr(self, "calls", 0) + 1
    return [{**example, "input_ids": [self.calls % 3]} for example in Correct.encode(self, *arguments)]


MUTANTS: Mapping[str, tuple[dict[str, Any], str]] = {
    "a mean of the batch": (
        {"losses": lambda self, logits, labels: (torch.tensor(0.5), torch.ones_like(labels))},
        r"losses returned losses of shape \(\); wanted: .* of shape \(6,\)",
    ),
    "other units": (
        {"losses": lambda self, *rest: _doubled(*Correct.losses(self, *rest))},
        "losses counts .* units, and the examples have",
    ),
    "labels twice": ({"labels": lambda self, *_: ("red", "blue", "red")}, "labels names a label twice"),
    "no labels": ({"labels": lambda self, *_: None}, "labels returned None"),
    "other examples": ({"encode": _anew}, "encode gives other examples when it is asked again"),
    "no value for some draws": ({"score": _recall}, "score gives nan for 'accuracy' of item"),
    "no metric": ({"score": lambda self, items: {"loss": 0.0}}, "score returned no 'accuracy'"),
    "a metric no spec can name": ({"metrics": {"accuracy": True, "f1": True}}, "`metric: accuracy` is refused"),
    "answers cut short": ({"answers": lambda self, *_: {"label": [0]}}, "answers returned 1 values of 'label'"),
    "an Auto class of its own": ({"auto_class": "AutoModelForNothing"}, "transformers has no 'AutoModelForNothing'"),
    "raises": ({"encode": lambda self, *_: {}["lost"]}, "encode failed: KeyError: 'lost'"),
    "texts as items": (
        {"items": lambda self, examples, answers, *_: {**{k: np.array(v) for k, v in answers.items()}, "t": "a" * 6}},
        "items returned 't' of shape",
    ),
}


def test_a_correct_task_passes() -> None:
    check_task(Correct(), ROWS)


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_careless_task_is_told_what_is_wrong(name: str) -> None:
    methods, told = MUTANTS[name]
    with pytest.raises((AssertionError, PluginError), match=told):
        check_task(type("Careless", (Correct,), methods)(), ROWS)


def test_a_class_is_no_task() -> None:
    with pytest.raises(AssertionError, match=r"give an instance, not the class: check_task\(Correct\(\)\)"):
        check_task(Correct, ROWS)  # type: ignore[arg-type]
