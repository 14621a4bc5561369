"""Classification's metrics against scikit-learn, the choice of a metric, and regression from rows to a run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import check_golden

from surgery import Options, Spec, load_spec, train
from surgery.errors import DataError, SpecError, SurgeryError
from surgery.operation import operate
from surgery.registry import Registry
from surgery.training import prepare
from surgery.training.fit import evaluate, fit
from surgery_text_classification.counts import class_scores

# Metrics of classes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 5, 200])
def test_scores_are_those_of_scikit_learn(classes: int, count: int) -> None:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    for seed in range(20):
        label, prediction = np.random.default_rng([classes, count, seed]).integers(0, classes, (2, count))
        scores = class_scores(label, prediction)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tables in which a class is missing
            wanted = {
                "accuracy": accuracy_score(label, prediction),
                "macro_f1": f1_score(label, prediction, average="macro", zero_division=0),
                "matthews": matthews_corrcoef(label, prediction),
            }
            if max(label.max(), prediction.max()) < 2:
                wanted["f1"] = f1_score(label, prediction, zero_division=0)
        assert scores == pytest.approx(wanted, abs=1e-12)


def test_matthews_of_many_items_does_not_overflow() -> None:
    label = np.arange(4_000_000) % 2
    assert class_scores(label, label)["matthews"] == 1.0
    assert class_scores(label, 1 - label)["matthews"] == -1.0


def rows(labels: str) -> list[dict[str, Any]]:
    return [{"text": f"the {label}", "label": label} for label in labels.split()]


def test_the_positive_label_comes_last(registry: Registry) -> None:
    task = registry.task("text-classification")
    given = rows("yes no no")
    assert task.labels(given, task.options(metric="f1")) == ("no", "yes")
    assert task.labels(given, task.options(metric="f1", positive="no")) == ("yes", "no")
    assert task.labels([{"text": "a", "label": 0}, {"text": "b", "label": 1}], task.options(positive=0)) == ("1", "0")


@pytest.mark.parametrize(
    ("options", "labels", "told"),
    [
        ({"metric": "f1"}, "a b c", "f1 and its positive label are for two labels, and the training rows hold 3"),
        ({"positive": "a"}, "a b c", "f1 and its positive label are for two labels, and the training rows hold 3"),
        ({"positive": "yse"}, "yes no", "the positive label 'yse' does not occur in the training split"),
    ],
)
def test_a_positive_label_that_cannot_be(options: Any, labels: str, told: str, registry: Registry) -> None:
    task = registry.task("text-classification")
    with pytest.raises(DataError, match=told) as caught:
        task.labels(rows(labels), task.options(**options))
    assert caught.value.where in ("task.metric", "task.positive")
    assert caught.value.hint


# The choice of a metric -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("text-classification", "mathews"),
        ("text-classification", "pearson"),
        ("text-regression", "accuracy"),
        ("question-answering", "exact"),
        ("token-classification", "macro_f1"),
    ],
)
def test_an_unknown_metric_is_an_error_of_the_spec(kind: str, metric: str, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"version: 1\nname: x\ntask: {{kind: {kind}, metric: {metric}}}\nrules: []\n", "utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(path, registry)
    problem = next(problem for problem in caught.value.problems if "task.metric" in problem.where)
    assert problem.where.startswith(f"{path}:3:")
    assert all(name in problem.what for name in registry.task(kind).metrics)
    if metric == "mathews":
        assert problem.hint == "did you mean 'matthews'?"


class FreeOptions(Options):
    """Options whose metric any text may be."""

    metric: str = "one"


def test_a_task_that_leaves_the_metric_open_is_asked(registry: Registry) -> None:
    task = registry.task("text-classification")
    with pytest.raises(SpecError) as caught:
        task.primary(FreeOptions(metric="acuracy"))  # type: ignore[arg-type]
    assert caught.value.where == "task.metric"
    assert "'accuracy' or 'macro_f1' or 'f1' or 'matthews'" in caught.value.what
    assert caught.value.hint == "did you mean 'accuracy'?"
    assert registry.task("causal-lm").primary(FreeOptions(metric="x")) == ("loss", False)  # type: ignore[arg-type]


def test_the_chosen_metric_reaches_the_curve(bert: Path, registry: Registry, tmp_path: Path) -> None:
    spec = Spec(
        name="chosen",
        model=str(bert),
        task={"kind": "text-classification", "metric": "matthews", "max_length": 16},
        training={"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
        rules=[{"role": r"head\.(classifier|transform)", "adapter": "full"}],
    )
    data = {"train": rows("yes no " * 6), "validation": rows("yes no no yes no")}
    result = train(spec, tmp_path / "run", registry=registry, data=data)
    assert set(result.metrics["validation"]) == {"loss", "accuracy", "macro_f1", "matthews", "f1"}
    assert result.fit is not None
    assert result.fit.history[-1].validation_metric == result.metrics["validation"]["matthews"]


# Regression -----------------------------------------------------------------------------------------------------------


def numbers(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows whose number is how often "Ada" stands in the text."""
    return [
        {"text": " ".join(["Ada"] * (index % 4) + ["the"] * (index % 3 + 1)), "label": float(index % 4)}
        for index in range(start, start + count)
    ]


def regression(folder: Path, **task: Any) -> Spec:
    return Spec(
        name="regression",
        model=str(folder),
        task={"kind": "text-regression", "max_length": 24, **task},
        training={"steps": 80, "batch_size": 8, "learning_rate": 1e-2},
        rules=[
            {"role": r"(attention|mlp)\..*", "adapter": "lora", "rank": 4},
            {"role": r"head\..*", "adapter": "full"},
        ],
    )


def test_a_run_on_every_family(folder: Path, registry: Registry) -> None:
    spec = regression(folder)
    session = prepare(
        spec, registry, data={"train": numbers(40), "validation": numbers(12, 100), "test": numbers(9, 200)}
    )
    assert session.model.config.num_labels == 1
    assert spec.training is not None
    with operate(session.model, session.plan, registry=registry) as op:
        result = fit(session, op, spec.training, seed=0)
        found = evaluate(session, "test")
    assert result.history[-1].validation_loss < result.history[0].validation_loss
    assert set(found.metrics) == {"loss", "pearson", "spearman", "mae"}
    assert set(found.items) == {"loss", "units", "predicted", "wanted"}
    assert found.items["wanted"].tolist() == [float(index % 4) for index in range(200, 209)]


def test_a_label_of_minus_a_hundred_is_a_number_like_any_other(bert: Path, registry: Registry) -> None:
    """Elsewhere -100 marks what has no loss: a batch of such labels would be divided by nothing."""
    rows = [{"text": f"{'Ada ' * number}", "label": -100} for number in range(1, 9)]
    spec = regression(bert)
    session = prepare(spec, registry, data={"train": rows, "validation": numbers(4)})
    assert spec.training is not None
    training = spec.training.model_copy(update={"steps": 2})
    with operate(session.model, session.plan, registry=registry) as op:
        result = fit(session, op, training, seed=0)
    assert all(math.isfinite(loss) and 9_000 < loss < 11_000 for loss in result.losses)


def test_regression_scores_are_those_of_scipy(registry: Registry) -> None:
    from scipy.stats import pearsonr, spearmanr

    draw = np.random.default_rng(0)
    wanted = draw.integers(0, 6, 50).astype(np.float64)
    predicted = wanted + draw.normal(size=50).round(1)
    items = {"loss": (wanted - predicted) ** 2, "units": np.ones(50), "predicted": predicted, "wanted": wanted}
    task = registry.task("text-regression")
    score = task.score(items)
    assert score["pearson"] == pytest.approx(float(pearsonr(predicted, wanted)[0]), abs=1e-12)
    assert score["spearman"] == pytest.approx(float(spearmanr(predicted, wanted)[0]), abs=1e-12)
    assert score["mae"] == pytest.approx(float(np.abs(predicted - wanted).mean()))
    assert score["loss"] == pytest.approx(float(((predicted - wanted) ** 2).mean()))
    constant = task.score({**items, "predicted": np.full(50, 2.5)})
    assert (constant["pearson"], constant["spearman"]) == (0.0, 0.0)
    assert task.primary(task.options(metric="mae")) == ("mae", False)


def test_the_loss_of_regression_is_that_of_transformers(registry: Registry) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1
    )
    model = BertForSequenceClassification(config).eval()
    ids, labels = torch.randint(4, 32, (3, 7)), torch.tensor([0.5, -1.0, 2.0])
    with torch.no_grad():
        output = model(input_ids=ids, labels=labels)
    loss, units = registry.task("text-regression").losses(output.logits, labels)
    torch.testing.assert_close(loss.sum() / units.sum(), output.loss)


def told(act: Callable[[], Any]) -> str:
    with pytest.raises(SurgeryError) as caught:
        act()
    assert isinstance(caught.value, DataError)
    return str(caught.value) + "\n"


def test_every_bad_number_is_told(words: Any, registry: Registry) -> None:
    task = registry.task("text-regression")
    bad: list[Any] = [float("nan"), float("inf"), "-inf", "good", "", None, True, [1.0], 10**400, 1e30]
    given = [{"text": "Ada", "label": value} for value in bad]
    text = told(lambda: task.encode(given, words, (), task.options(), lambda index: f"train.csv:{index + 2}"))
    check_golden("regression-labels", text)
    good = [{"text": "Ada", "label": value} for value in ("1.5", 2, -0.25, "1e3")]
    assert [row["labels"] for row in task.encode(good, words, (), task.options(), str)] == [1.5, 2.0, -0.25, 1000.0]
