"""The two tasks: labels, encoding, losses, scores."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from small import make_tokenizer

from surgery.errors import DataError
from surgery.registry import Registry


def place(index: int) -> str:
    return f"train.jsonl:{index + 1}"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(["<end>", "<unk>"], unk_token="<unk>", eos_token="<end>", pad_token="<end>")


def encode(
    registry: Registry, kind: str, rows: list[Any], tokenizer: Any, labels: tuple[str, ...] = (), **options: Any
) -> Any:
    task = registry.task(kind)
    return task.encode(rows, tokenizer, labels, task.options(**options), place)


def test_importing_the_plugins_imports_nothing_heavy() -> None:
    code = (
        "import sys, surgery_causal_lm, surgery_text_classification, surgery_transformers\n"
        "import surgery.training\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'datasets'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["pos", "neg", "pos"], ("neg", "pos")),
        ([10, 9, -1], ("-1", "9", "10")),
        (["10", "9"], ("9", "10")),
        ([True, False], ("False", "True")),
    ],
)
def test_labels_are_sorted(registry: Registry, values: list[Any], labels: tuple[str, ...]) -> None:
    task = registry.task("text-classification")
    assert task.labels([{"text": "a", "label": value} for value in values], task.options()) == labels


def test_classification_examples(registry: Registry, tokenizer: Any) -> None:
    rows = [{"text": "the film was great", "label": 1}, {"text": "bad", "label": "0"}]
    examples = encode(registry, "text-classification", rows, tokenizer, ("0", "1"), max_length=3)
    assert [example["labels"] for example in examples] == [1, 0]
    assert [len(example["input_ids"]) for example in examples] == [3, 1]


def test_pairs_are_encoded_together(registry: Registry, tokenizer: Any) -> None:
    rows = [{"text": "the film", "text_pair": "the plot", "label": "a"}]
    example = encode(registry, "text-classification", rows, tokenizer, ("a", "b"))[0]
    assert len(example["input_ids"]) == 4


def test_bad_rows_are_told_together(registry: Registry, tokenizer: Any) -> None:
    rows = [{"text": 3, "label": "a"}, {"text": "x", "label": "aa"}, {"text": "x", "label": 1.5}]
    with pytest.raises(DataError) as caught:
        encode(registry, "text-classification", rows, tokenizer, ("a", "b"))
    assert [(problem.where, problem.what) for problem in caught.value.problems] == [
        ("train.jsonl:1", "the text must be text, not int"),
        ("train.jsonl:2", "label 'aa' does not occur in the training split"),
        ("train.jsonl:3", "a label must be text or a whole number, not 1.5"),
    ]
    assert caught.value.problems[1].hint == "did you mean 'a'?"


def test_at_most_ten_problems_are_told(registry: Registry, tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        encode(registry, "text-classification", [{"text": "x", "label": "?"}] * 100, tokenizer, ("a", "b"))
    assert len(caught.value.problems) == 10


def test_classification_losses_and_scores(registry: Registry) -> None:
    task = registry.task("text-classification")
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    loss, units = task.losses(logits, torch.tensor([0, 0]))
    expected = -torch.log_softmax(logits.double(), dim=1)[:, 0]
    assert torch.allclose(loss.double(), expected)
    assert units.tolist() == [1, 1]
    items = {"loss": loss.numpy(), "units": units.numpy(), "label": np.array([0, 0]), "prediction": np.array([0, 1])}
    score = task.score(items)
    assert score["accuracy"] == 0.5
    assert score["macro_f1"] == pytest.approx(1 / 3)
    assert score["loss"] == pytest.approx(float(expected.mean()))


def test_packing_joins_texts_with_the_end_token(registry: Registry, tokenizer: Any) -> None:
    rows = [{"text": "the film was"}, {"text": ""}, {"text": "great plot"}]
    ids = tokenizer("the film was great plot")["input_ids"]
    end = tokenizer.eos_token_id
    examples = encode(registry, "causal-lm", rows, tokenizer, max_length=4)
    assert [example["input_ids"] for example in examples] == [[*ids[:3], end], [*ids[3:], end]]
    assert [example["labels"] for example in examples] == [[-100, *ids[1:3], end], [-100, ids[4], end]]


def test_texts_one_by_one(registry: Registry, tokenizer: Any) -> None:
    rows = [{"text": "the film was great"}, {"text": "bad"}, {"text": ""}]
    examples = encode(registry, "causal-lm", rows, tokenizer, max_length=3, packing=False)
    assert [len(example["input_ids"]) for example in examples] == [3, 2]


def test_texts_without_tokens(registry: Registry, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="the texts hold no two tokens in a row"):
        encode(registry, "causal-lm", [{"text": " "}], tokenizer)
    with pytest.raises(DataError, match="the text must be text, not NoneType"):
        encode(registry, "causal-lm", [{"text": None}], tokenizer)


def test_causal_losses_shift_the_labels(registry: Registry) -> None:
    task = registry.task("causal-lm")
    logits = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 1, 2, 3], [-100, 4, -100, -100]])
    loss, units = task.losses(logits, labels)
    logp = torch.log_softmax(logits.double(), dim=-1)
    expected = [-(logp[0, 0, 1] + logp[0, 1, 2] + logp[0, 2, 3]), -logp[1, 0, 4]]
    assert torch.allclose(loss.double(), torch.stack(expected))
    assert units.tolist() == [3, 1]
    score = task.score({"loss": loss.numpy(), "units": units.numpy()})
    assert score["loss"] == pytest.approx(float(sum(expected)) / 4)
    assert score["perplexity"] == pytest.approx(np.exp(score["loss"]))


def test_an_empty_label_is_no_class(registry: Registry, tokenizer: Any) -> None:
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": ""}]
    with pytest.raises(DataError, match="the label is empty"):
        encode(registry, "text-classification", rows, tokenizer, ("", "a"))
