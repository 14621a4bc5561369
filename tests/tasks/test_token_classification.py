"""Token classification: entities, alignment of words and tokens, whole runs on four families, and every refused row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import check_golden

from surgery import Spec, train
from surgery.errors import DataError, SurgeryError
from surgery.operation import operate
from surgery.registry import Registry
from surgery.training import prepare
from surgery.training.fit import evaluate, fit, logits
from surgery_token_classification.chunks import entities, is_chunk_tag

TAGS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    people, places = ["Ada", "Bob", "Carol"], ["Rome", "Paris"]
    found = []
    for index in range(start, start + count):
        who, where = people[index % 3], places[index % 2]
        words = ["the"] * (index % 3) + [who, who, "lives", "in", where, "."]
        tags = ["O"] * (index % 3) + ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]
        found.append({"tokens": words, "ner_tags": tags})
    return found


def encode(
    registry: Registry, given: list[Any], tokenizer: Any, labels: tuple[str, ...] = TAGS, **options: Any
) -> list[dict[str, Any]]:
    task = registry.task("token-classification")
    named = [{"words": row["tokens"], "tags": row["ner_tags"]} for row in given]
    return task.encode(named, tokenizer, labels, task.options(**options), lambda index: f"train.jsonl:{index + 1}")


# Entities -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("O O", set()),
        ("B-A I-A O", {("A", 0, 2)}),
        ("B-A B-A", {("A", 0, 1), ("A", 1, 2)}),
        ("I-A I-A", {("A", 0, 2)}),  # begins without B-
        ("B-A I-B", {("A", 0, 1), ("B", 1, 2)}),
        ("I-A O I-A", {("A", 0, 1), ("A", 2, 3)}),
        ("B-A I-A I-B I-A", {("A", 0, 2), ("B", 2, 3), ("A", 3, 4)}),
        ("B-a-b I-a-b", {("a-b", 0, 2)}),
    ],
)
def test_entities(tags: str, wanted: set[Any]) -> None:
    assert entities(tags.split()) == wanted


def conlleval(tags: list[str]) -> set[Any]:
    """The rules of CoNLL's script: whether an entity ends before, and whether one begins at, each word."""
    found, begun = set(), 0
    before, kind = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        ends = (before != "O") and (prefix in "BO" or kind != name)
        begins = prefix == "B" or (prefix == "I" and (before == "O" or kind != name))
        if ends:
            found.add((kind, begun, place))
        if begins:
            begun = place
        before, kind = prefix, name
    return found


def test_entities_are_those_of_conll() -> None:
    for tags in product(("O", "B-X", "I-X", "B-Y", "I-Y"), repeat=4):
        assert entities(tags) == conlleval(list(tags)), tags


@pytest.mark.parametrize(
    ("tag", "is_one"),
    [("O", True), ("B-PER", True), ("I-a-b", True), ("B-", False), ("B", False), ("NOUN", False), ("E-X", False), ("", False)],
)  # fmt: skip
def test_chunk_tags(tag: str, is_one: bool) -> None:
    assert is_chunk_tag(tag) == is_one


# Alignment ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["words", "bytes_tokenizer"])
def test_the_first_token_of_a_word_speaks_for_it(
    tokenizer: str, registry: Registry, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(tokenizer)
    given = {"tokens": ["the", "Adax", "in", "a", "Ada"], "ner_tags": ["O", "B-PER", "O", "O", "B-LOC"]}
    example = encode(registry, [given], made)[0]
    labelled = [place for place, label in enumerate(example["labels"]) if label != -100]
    assert [TAGS[example["labels"][place]] for place in labelled] == given["ner_tags"]
    assert example["_words"] == [0, 1, 2, 3, 4]
    first = [made.decode([example["input_ids"][place]]).strip() for place in labelled]
    assert all(word.lower().startswith(token.lower()) for word, token in zip(given["tokens"], first, strict=True))
    assert len(example["labels"]) == len(example["input_ids"]) > len(labelled)


def test_words_without_a_token_and_words_that_are_cut(words: Any, registry: Registry) -> None:
    task = registry.task("token-classification")
    given = [
        {"tokens": ["Ada", "\u200b", "in", "Rome", "\u200b"], "ner_tags": ["B-PER", "O", "O", "B-LOC", "I-LOC"]},
        {"tokens": ["Ada", "Bob", "Rome"] * 3, "ner_tags": ["B-PER", "B-PER", "B-LOC"] * 3},
    ]
    found = encode(registry, given, words, max_length=8)
    assert [example["_words"] for example in found] == [[0, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert [example["_cut"] for example in found] == [0, 3]
    assert list(task.notes(found, task.options(max_length=8))) == [
        "1 of 2 sentences are longer than 8 tokens: 3 words are cut, and count as answered by O",
        "2 words have no token of their own, and count as answered by O",
    ]
    assert next(iter(task.notes(found[:1], task.options()))).startswith("2 words")
    # A perfect model still misses what was cut.
    scores = torch.nn.functional.one_hot(torch.tensor(found[1]["labels"]).clamp(min=0), len(TAGS)).float()[None]
    told = task.answers(scores, found[1:], TAGS, task.options())["tags"]
    assert [TAGS[tag] for tag in told[0]] == ["B-PER", "B-PER", "B-LOC"] * 2 + ["O"] * 3
    items = task.items(found[1:], {"loss": [1.0], "units": [6], "tags": told}, TAGS, task.options())
    score = task.score(items)
    assert (score["accuracy"], score["recall"], score["precision"]) == (6 / 9, 6 / 9, 1.0)
    assert score["f1"] == pytest.approx(0.8)


def test_tags_that_are_numbers(words: Any, registry: Registry) -> None:
    task = registry.task("token-classification")
    names = ("O", "B-PER", "I-PER")
    numbered = [{"words": ["Ada", "in"], "tags": [1, 0]}]
    options = task.options(tags=names)
    assert task.labels(numbered, options) == names
    example = task.encode(numbered, words, names, options, str)[0]
    assert example["_tags"] == (1, 0)
    assert task.labels([{"words": ["a"] * 3, "tags": [10, 9, "2"]}], task.options(metric="accuracy")) == (
        "2",
        "9",
        "10",
    )


def test_parts_of_speech_have_no_f1(words: Any, registry: Registry) -> None:
    task = registry.task("token-classification")
    options = task.options(metric="accuracy")
    given = [{"words": ["Ada", "lives"], "tags": ["NOUN", "VERB"]}]
    labels = task.labels(given, options)
    examples = task.encode(given, words, labels, options, str)
    items = task.items(examples, {"loss": [1.0], "units": [2], "tags": [[0, 0]]}, labels, options)
    assert set(items) == {"loss", "units", "words", "right"}
    assert task.score(items) == {"loss": 0.5, "accuracy": 0.5}
    assert task.primary(options) == ("accuracy", True)


def test_no_entity_at_all_is_an_f1_of_zero(registry: Registry) -> None:
    none = {name: np.array([0, 0]) for name in ("wanted", "found", "matched")}
    items = {"loss": np.ones(2), "units": np.ones(2), "words": np.ones(2), "right": np.ones(2), **none}
    score = registry.task("token-classification").score(items)
    assert (score["f1"], score["precision"], score["recall"], score["accuracy"]) == (0.0, 0.0, 0.0, 1.0)


# Whole runs -----------------------------------------------------------------------------------------------------------


def spec_for(folder: Path, **training: Any) -> Spec:
    return Spec(
        name="tags",
        model=str(folder),
        task={"kind": "token-classification", "max_length": 48},
        training={"steps": 60, "batch_size": 8, "learning_rate": 1e-2, **training},
        rules=[
            {"role": r"(attention|mlp)\..*", "adapter": "lora", "rank": 4},
            {"role": r"head\.classifier", "adapter": "full"},
        ],
    )


def test_a_run_on_every_family(folder: Path, registry: Registry) -> None:
    spec = spec_for(folder)
    session = prepare(spec, registry, data={"train": rows(48), "validation": rows(12, 100), "test": rows(8, 200)})
    assert session.labels == ("B-LOC", "B-PER", "I-PER", "O")
    assert spec.training is not None
    with operate(session.model, session.plan, registry=registry) as op:
        result = fit(session, op, spec.training, seed=0)
        found = evaluate(session, "test")
        shapes = [array.shape for array in logits(session, "validation", 4)]
    assert result.history[-1].validation_loss < result.history[0].validation_loss
    assert set(found.metrics) == {"loss", "accuracy", "precision", "recall", "f1"}
    assert {len(array) for array in found.items.values()} == {8}
    assert found.items["wanted"].tolist() == [2] * 8
    assert shapes == [(len(example["input_ids"]), 4) for example in session.examples["validation"][:4]]


def test_a_small_model_learns_the_tags(bert: Path, registry: Registry, tmp_path: Path) -> None:
    data = {"train": rows(48), "validation": rows(12, 100), "test": rows(12, 200)}
    result = train(spec_for(bert, steps=120), tmp_path / "run", registry=registry, data=data)
    metric = result.metrics["test"]["f1"]
    assert metric is not None
    assert metric > 0.9


def test_what_was_cut_is_told(bert: Path, registry: Registry) -> None:
    spec = spec_for(bert)
    spec = Spec(**{**spec.model_dump(), "task": {"kind": "token-classification", "max_length": 7}})
    session = prepare(spec, registry, data={"train": rows(30), "validation": rows(6)})
    assert any(note.startswith("train: ") and "words are cut" in note for note in session.notes)
    assert any(note.startswith("validation: ") for note in session.notes)


# What is refused ------------------------------------------------------------------------------------------------------


def one(tokens: Any, tags: Any) -> dict[str, Any]:
    return {"tokens": tokens, "ner_tags": tags}


def told(act: Callable[[], Any]) -> str:
    with pytest.raises(SurgeryError) as caught:
        act()
    assert isinstance(caught.value, DataError)
    return str(caught.value) + "\n"


def test_every_bad_row_is_told(words: Any, registry: Registry) -> None:
    bad = [
        one(["Ada", "in"], ["O"]),
        one([], []),
        one("Ada in", ["O", "O"]),
        one(["Ada"], None),
        one(["Ada", 3], ["O", "O"]),
        one(["Ada"], [""]),
        one(["Ada"], [None]),
        one(["Ada"], ["B-PRE"]),
        one(["Ada"], [True]),
    ]
    check_golden("tags-rows", told(lambda: encode(registry, bad, words)))
    numbered = [one(["Ada"], [9]), one(["Ada"], [-1]), one(["Ada"], ["X"])]
    check_golden("tags-numbers", told(lambda: encode(registry, numbered, words, tags=TAGS)))
    check_golden("tags-tokens", told(lambda: encode(registry, [one(["\u200b"], ["O"])], words)))


def test_bad_tags_are_told(registry: Registry) -> None:
    task = registry.task("token-classification")
    given = [{"words": ["a", "b"], "tags": [0, 1]}]
    text = told(lambda: task.labels(given, task.options()))
    text += told(lambda: task.labels([{"words": ["a", "b"], "tags": ["NOUN", "VERB"]}], task.options()))
    text += told(lambda: task.labels([{"words": ["a"], "tags": ["O"]}], task.options()))
    text += told(lambda: task.labels(given, task.options(tags=("O", "B-A", "O"))))
    check_golden("tags-names", text)
