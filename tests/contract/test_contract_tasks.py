"""What every registered task keeps to: from a few rows to examples, losses, items, scores, and resampled scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from surgery.registry import Registry, load_registry
from surgery.study.resample import resampled_scores
from surgery.testing import check_task
from surgery.training.collate import Collator
from surgery.training.generation import by_item

REGISTRY: Registry = load_registry()

_QA = {"context": "Ada lives in Rome .", "question": "where ?", "answers": {"text": ["Rome"], "answer_start": [13]}}
ROWS: Mapping[str, list[dict[str, Any]]] = {
    "text-classification": [{"text": f"the house {number}", "label": "ab"[number % 2]} for number in range(12)],
    "text-regression": [{"text": f"the house {number}", "label": number / 3} for number in range(12)],
    "causal-lm": [{"text": f"the old house {number} of Ada"} for number in range(12)],
    "conditional-generation": [{"source": f"the house {n // 2}", "target": f"Ada {n}"} for n in range(12)],
    "question-answering": [{**_QA, "question": f"where {number} ?"} for number in range(12)],
    "token-classification": [{"words": ["Ada", "in", "Rome"], "tags": ["B-PER", "O", "B-LOC"]} for _ in range(12)],
}
"""Rows with the task's own column names. A task that is added is added here."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[SEP]",
        *["the", "old", "house", "of", "Ada", "in", "Rome", "lives", "where", ".", "?"],
        *map(str, range(12)),
    ]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]")


@pytest.fixture(params=sorted(ROWS), scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def small(kind: str, outputs: int | None) -> Any:
    """A model with the head that the task asks for."""
    torch.manual_seed(0)
    heads = {} if outputs is None else {"num_labels": outputs}
    config = transformers.GPT2Config(
        vocab_size=32, n_embd=8, n_layer=1, n_head=2, n_positions=128, pad_token_id=0, **heads
    )
    return getattr(transformers, REGISTRY.task(kind).auto_class).from_config(config).eval()


def evaluated(kind: str, tokenizer: Any) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """Encode the rows, call a model, and return the examples and the items, as evaluation does."""
    task = REGISTRY.task(kind)
    options = task.options()
    labels = task.labels(ROWS[kind], options)
    examples = task.encode(ROWS[kind], tokenizer, labels, options, str)
    batch = Collator(0)(examples)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        scores = task.logits(small(kind, task.outputs(labels, options))(**inputs), inputs)
        loss, units = task.losses(scores, batch["labels"])
        answers = {"loss": loss.tolist(), "units": units.tolist(), **task.answers(scores, examples, labels, options)}
    assert all(len(values) == len(examples) for values in answers.values())
    items = task.items(examples, answers, labels, options)
    generation = task.generation(ROWS[kind], tokenizer, options)
    if generation is not None:
        assert len(generation.items) == len(examples)
        texts = [f"Ada {number} lives" for number in range(len(generation.prompts))]
        items = {**by_item(generation, items), **generation.measure(texts)}
    return examples, items


def test_the_public_check_passes(kind: str) -> None:
    check_task(REGISTRY.task(kind), ROWS[kind])


def test_every_task_is_tried() -> None:
    assert set(REGISTRY.tasks) <= set(ROWS), "add rows for the new task above"


def test_examples(kind: str, tokenizer: Any) -> None:
    examples, _ = evaluated(kind, tokenizer)
    batch = Collator(0)(examples)
    assert {"input_ids", "labels"} <= set(batch)
    assert not [key for key in batch if key.startswith("_")]
    assert all(isinstance(value, torch.Tensor) for value in batch.values())


def test_units_are_the_labels_that_count(kind: str, tokenizer: Any) -> None:
    """The Trainer counts labels that are not -100; a task that counts otherwise would be trained on another scale."""
    task = REGISTRY.task(kind)
    examples, _ = evaluated(kind, tokenizer)
    batch = Collator(0)(examples)
    options = task.options()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    outputs = task.outputs(task.labels(ROWS[kind], options), options)
    with torch.no_grad():
        loss, units = task.losses(task.logits(small(kind, outputs)(**inputs), inputs), batch["labels"])
    assert loss.shape == units.shape == (len(examples),)
    assert not units.is_floating_point()
    counted = batch["labels"] != -100
    assert int(units.sum()) == int(counted.sum())
    assert bool((loss >= 0).all())


def test_items_hold_all_that_the_metrics_need(kind: str, tokenizer: Any) -> None:
    task = REGISTRY.task(kind)
    _, items = evaluated(kind, tokenizer)
    assert {"loss", "units"} <= set(items)
    shapes = {np.shape(array) for array in items.values()}
    assert len(shapes) == 1
    assert all(np.asarray(array).dtype.kind in "iuf" for array in items.values()), "records hold numbers"
    scores = task.score(items)
    wanted = set(task.metrics) or {task.metric}
    assert wanted | {"loss"} <= set(scores)
    assert all(isinstance(value, float) and math.isfinite(value) for value in scores.values())
    # As a study reads them back: lists of JSON, floats all of them.
    again = {name: np.array([float(value) for value in array.tolist()]) for name, array in items.items()}
    assert task.score(again) == pytest.approx(scores, abs=1e-12)


def test_the_first_metric_is_the_default(kind: str) -> None:
    task = REGISTRY.task(kind)
    assert task.primary(task.options()) == (task.metric, task.greater_is_better)
    for name, greater in task.metrics.items():
        assert task.primary(task.options(metric=name)) == (name, greater)


def test_metrics_are_computed_anew_on_resampled_items(kind: str, tokenizer: Any) -> None:
    """Not a mean of something that was computed before: the same draws, scored by hand, item after item."""
    task = REGISTRY.task(kind)
    _, items = evaluated(kind, tokenizer)
    count = len(items["loss"])
    for name in task.metrics or (task.metric,):
        drawn = resampled_scores([items], lambda part, name=name: task.score(part)[name], 50, 7)[:, 0]  # type: ignore[misc]
        generator = np.random.default_rng(7)
        for value in drawn:
            chosen = generator.integers(0, count, count)
            assert value == task.score({key: np.asarray(array)[chosen] for key, array in items.items()})[name]
            assert math.isfinite(value)


def test_one_item_has_a_score(kind: str, tokenizer: Any) -> None:
    task = REGISTRY.task(kind)
    _, items = evaluated(kind, tokenizer)
    for index in range(len(items["loss"])):
        one = task.score({name: np.asarray(array)[[index] * 3] for name, array in items.items()})
        assert all(math.isfinite(value) for value in one.values())
