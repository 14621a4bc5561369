"""The item half of the bootstrap, for every metric of every task: computed anew on the drawn items, paired over arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from surgery.registry import Registry, load_registry
from surgery.study import StudySpec, compare
from surgery.study.measure import measure
from surgery.study.run_cell import _items, _metrics
from surgery.training import Evaluation

Arrays = Mapping[str, NDArray[Any]]
ITEMS, SEEDS = 40, (1, 2)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


def classes(draw: np.random.Generator, count: int = 3) -> Arrays:
    label = np.arange(ITEMS) % count
    prediction = np.where(draw.random(ITEMS) < 0.6, label, draw.integers(0, count, ITEMS))
    return {"loss": draw.random(ITEMS), "units": np.ones(ITEMS), "prediction": prediction, "label": label}


def numbers(draw: np.random.Generator) -> Arrays:
    # Whole numbers, so that some are hit exactly: they are not right or wrong for that.
    wanted = np.arange(ITEMS) % 5.0
    predicted = (wanted + draw.normal(0, 1, ITEMS)).round()
    return {"loss": (predicted - wanted) ** 2, "units": np.ones(ITEMS), "predicted": predicted, "wanted": wanted}


def answers(draw: np.random.Generator) -> Arrays:
    em = (draw.random(ITEMS) < 0.5).astype(float)
    f1 = np.maximum(em, draw.random(ITEMS))
    return {"loss": draw.random(ITEMS), "units": np.arange(ITEMS) % 3 * 2 + 2, "em": em, "f1": f1}


def tags(draw: np.random.Generator) -> Arrays:
    words, wanted, found = np.arange(ITEMS) % 7 + 3, np.arange(ITEMS) % 4, draw.integers(0, 4, ITEMS)
    matched = np.minimum(wanted, found) - (np.minimum(wanted, found) > 1)
    right = words - draw.integers(0, 3, ITEMS)
    entities = {"wanted": wanted, "found": found, "matched": matched}
    return {"loss": draw.random(ITEMS), "units": words, "words": words, "right": right, **entities}


def tokens(draw: np.random.Generator) -> Arrays:
    return {"loss": draw.random(ITEMS) * 20, "units": np.arange(ITEMS) % 9 + 1}


def texts(draw: np.random.Generator) -> Arrays:
    from surgery_conditional_generation.measures import Measures

    words = np.array(
        ["a", "coffee", "shop", "in", "the", "city", "centre", "near", "the", "river", "that", "serves", "good", "food"]
    )
    wanted = [[" ".join(draw.choice(words, 8)) for _ in range(1 + item % 3)] for item in range(ITEMS)]
    found = [" ".join(draw.choice(words, 7)) for _ in range(ITEMS)]
    counts = Measures(wanted, lowercase=False).items(found, range(ITEMS), ITEMS)
    return {"loss": draw.random(ITEMS) * 20, "units": np.arange(ITEMS) % 9 + 1, **counts}


CASES: list[tuple[str, str, Callable[[np.random.Generator], Arrays], bool]] = [
    ("text-classification", "accuracy", classes, True),
    ("text-classification", "macro_f1", classes, True),
    ("text-classification", "matthews", classes, True),
    ("text-classification", "f1", lambda draw: classes(draw, 2), True),
    ("text-regression", "pearson", numbers, False),
    ("text-regression", "spearman", numbers, False),
    ("text-regression", "mae", numbers, False),
    ("question-answering", "f1", answers, False),
    ("question-answering", "em", answers, True),
    ("token-classification", "f1", tags, False),
    ("token-classification", "accuracy", tags, False),
    ("causal-lm", "loss", tokens, False),
    *[("conditional-generation", metric, texts, False) for metric in ("bleu", "nist", "chrf", "rouge_l", "loss")],
]
"""Task, metric, made-up items, and whether an item is right or wrong: then McNemar's test is one of it."""


def record(arm: str, seed: int, items: Arrays, task: Any) -> Any:
    """What a final run writes, as far as `measure` reads it."""
    metrics = task.score(items)
    return {
        "arm": arm,
        "seed": seed,
        "trains": True,
        "majority": None,
        "test": _metrics(metrics),
        "items": _items(Evaluation("test", metrics, items, 0.0)),
    }


def test_every_metric_of_every_task_is_tried(registry: Registry) -> None:
    known = {
        (name, metric) for name, task in registry.tasks.items() for metric in task.value.metrics or [task.value.metric]
    }
    assert known <= {(task, metric) for task, metric, *_ in CASES}, "add a case above"


@pytest.mark.parametrize(("kind", "metric", "make", "is_right_or_wrong"), CASES, ids=lambda value: str(value)[:20])
def test_the_metric_is_computed_anew_on_every_draw(
    kind: str, metric: str, make: Callable[..., Arrays], is_right_or_wrong: bool, registry: Registry
) -> None:
    task = registry.task(kind)
    made = {(arm, seed): make(np.random.default_rng([seed, arm == "a"])) for arm in ("a", "b") for seed in SEEDS}
    final = [record(arm, seed, items, task) for (arm, seed), items in made.items()]
    measured = measure(final, metric, SEEDS, 200, task.score)
    assert measured.items == ITEMS
    generator = np.random.default_rng(0)
    draws = [generator.integers(0, ITEMS, ITEMS) for _ in range(200)]
    for arm in ("a", "b"):
        for column, seed in enumerate(SEEDS):
            items = made[arm, seed]
            assert measured.points[arm][column] == pytest.approx(task.score(items)[metric], abs=1e-12)
            by_hand = [task.score({name: array[drawn] for name, array in items.items()})[metric] for drawn in draws]
            # Of a metric that is a ratio, draws are made in blocks; of any other, one by one. Both are these draws.
            np.testing.assert_allclose(measured.draws[arm][:, column], by_hand, atol=1e-12)
            assert np.std(by_hand) > 0
    assert (measured.right is not None) == is_right_or_wrong
    if measured.right is not None:
        hits = (
            made["a", 1]["em"] == 1
            if kind == "question-answering"
            else made["a", 1]["label"] == made["a", 1]["prediction"]
        )
        assert measured.right["a"][0].tolist() == hits.tolist()


def test_a_metric_that_means_something_else_is_computed_by_its_task(registry: Registry) -> None:
    """An array that is called like the metric, of which the metric is no mean."""
    task = registry.task("question-answering")

    def best(items: Any) -> dict[str, float]:
        return {"loss": 0.0, "f1": float(np.max(items["f1"]))}

    made = {seed: answers(np.random.default_rng(seed)) for seed in SEEDS}
    final = [record("a", seed, items, task) for seed, items in made.items()]
    for one in final:
        one["test"]["f1"] = max(one["items"]["f1"])
    measured = measure(final, "f1", SEEDS, 50, best)
    generator = np.random.default_rng(0)
    for row in measured.draws["a"]:
        drawn = generator.integers(0, ITEMS, ITEMS)
        assert row.tolist() == [made[seed]["f1"][drawn].max() for seed in SEEDS]


# Whole studies ------------------------------------------------------------------------------------------------------


def question(number: int) -> dict[str, Any]:
    who, where = ("good", "bad", "fine")[number % 3], ("film", "book")[number % 2]
    context = f"the {who} {where} was slow " + "a plot " * (number % 5 + 1)
    return {
        "context": context + str(number),
        "question": "is great",
        "answers": {"text": [where], "answer_start": [context.index(where)]},
    }


def sentence(number: int) -> dict[str, Any]:
    words = ["the", ("good", "bad", "fine")[number % 3], ("film", "book")[number % 2]] + ["was"] * (number % 3)
    return {"tokens": [*words, str(number)], "ner_tags": ["O", "B-HOW", "I-HOW"] + ["O"] * (number % 3 + 1)}


def score(number: int) -> dict[str, Any]:
    return {"text": "great " * (number % 4) + f"film {number}", "label": float(number % 4)}


@pytest.mark.parametrize(
    ("kind", "metric", "make"),
    [
        ("question-answering", "em", question),
        ("token-classification", "f1", sentence),
        ("text-regression", "spearman", score),
    ],
)
def test_a_study_of_the_task(
    kind: str, metric: str, make: Callable[[int], Any], registry: Registry, tmp_path: Path, bert: str
) -> None:
    import json

    data = {}
    for name, numbers in (("train", range(48)), ("validation", range(100, 116)), ("test", range(200, 216))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(make(n)) + "\n" for n in numbers), "utf-8")
        data[name] = str(tmp_path / f"{name}.jsonl")
    options = {"max_length": 14, "stride": 3} if kind == "question-answering" else {"max_length": 24}
    study = StudySpec(
        name="tiny",
        model=bert,
        task={"kind": kind, "metric": metric, **options},
        data=data,
        training={"steps": 8, "batch_size": 8},
        seeds=[1],
        head=[{"role": r"head\..*", "adapter": "full"}],
        head_learning_rate=5e-3,
        arms={
            "full": {"rules": [{"role": ".*", "adapter": "full"}], "learning_rate": 3e-3},
            "lora": {"rules": [{"role": r"attention\..*", "adapter": "lora", "rank": 2}], "learning_rate": 1e-2},
        },
        reference="full",
        margin=0.02,
        resamples=1000,
    )
    comparison = compare(study, tmp_path / "out", registry=registry, workers=1)
    assert comparison.summary.metric == {"name": metric, "greater_is_better": True}
    assert comparison.summary.items == 16
    assert [row.arm for row in comparison.summary.rows] == ["full", "lora", "frozen"]
    assert not [check for check in comparison.summary.checks if check.status == "fail" and check.blocks]
    pair = comparison.summary.row("lora").pair
    assert pair is not None
    assert (pair.mcnemar is not None) == (metric == "em")
    merges = [record["merge"] for record in comparison.records if record["merge"]]
    assert merges
    assert all(merge["differ"] == 0 and (merge["logit_size"] or 0) < 1e3 for merge in merges)
