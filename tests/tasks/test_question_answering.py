"""Extractive question answering: agreement, windows, spans, whole runs on four families, and every refused row."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import check_golden

from surgery import Spec, load_adapter, train
from surgery.errors import DataError, PlanError, SurgeryError, TrainingError
from surgery.operation import operate
from surgery.registry import Registry
from surgery.training import prepare
from surgery.training.fit import evaluate, fit, logits
from surgery_question_answering.agreement import exact_match, f1, normal
from surgery_question_answering.spans import best_span

CONTEXT = "Ada lives in the old house . Bob lives in Rome , and the queen in the blue house in Paris ."


def row(question: str, answer: str, context: str = CONTEXT, nth: int = 0) -> dict[str, Any]:
    start = -1
    for _ in range(nth + 1):
        start = context.index(answer, start + 1)
    return {"context": context, "question": question, "answers": {"text": [answer], "answer_start": [start]}}


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Questions whose answer a model can learn: the word behind "in"."""
    places, people = ["Rome", "Paris"], ["Ada", "Bob", "Carol"]
    found = []
    for index in range(start, start + count):
        who, where = people[index % 3], places[index % 2]
        context = f"{who} lives in {where} , " + " ".join(["the old house"] * (index % 4)) + "."
        found.append(row(f"where lives {who} ?", where, context))
    return found


def encode(registry: Registry, given: list[Any], tokenizer: Any, **options: Any) -> list[dict[str, Any]]:
    task = registry.task("question-answering")
    return task.encode(given, tokenizer, (), task.options(**options), lambda index: f"train.jsonl:{index + 1}")


# What SQuAD calls the same ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Denver\tBroncos!", "denver broncos"),
        ("a an the", ""),
        ("theatre, Another", "theatre another"),  # articles are whole words
        ("24–10", "24–10"),  # only ASCII punctuation goes
        ("it's a U.S. team", "its us team"),
        ("ÉCOLE", "école"),
    ],
)
def test_normal(text: str, wanted: str) -> None:
    assert normal(text) == wanted


@pytest.mark.parametrize(
    ("answer", "references", "em", "overlap"),
    [
        ("The Broncos", ["broncos", "Denver Broncos"], 1.0, 1.0),
        ("Denver Broncos of Denver", ["Denver Broncos"], 0.0, 2 * (2 / 4) * (2 / 2) / (2 / 4 + 2 / 2)),
        ("the old old house", ["old house old"], 0.0, 1.0),
        ("Rome", ["Paris", "in Rome"], 0.0, 2 / 3),
        ("", ["Rome"], 0.0, 0.0),
        ("the", ["The"], 1.0, 1.0),
        ("the", ["Rome"], 0.0, 0.0),
    ],
)
def test_agreement(answer: str, references: list[str], em: float, overlap: float) -> None:
    assert exact_match(answer, references) == em
    assert f1(answer, references) == pytest.approx(overlap)


# Windows --------------------------------------------------------------------------------------------------------------


def answer_of(example: dict[str, Any]) -> str:
    first, last = (label - example["_first"] for label in example["labels"])
    spans = example["_spans"]
    text: str = example["_question"].context[spans[first, 0] : spans[last, 1]]
    return text


@pytest.mark.parametrize("answer", ["Rome", "Ada", "blue house in Paris", "Paris .", "the queen"])
@pytest.mark.parametrize("tokenizer", ["words", "bytes_tokenizer"])
def test_labels_point_to_the_answer(
    answer: str, tokenizer: str, registry: Registry, request: pytest.FixtureRequest
) -> None:
    found = encode(registry, [row("who ?", answer)], request.getfixturevalue(tokenizer), max_length=200, stride=8)
    assert len(found) == 1
    assert answer_of(found[0]).strip() == answer


@pytest.mark.parametrize("tokenizer", ["words", "bytes_tokenizer"])
def test_windows_cover_the_context_and_share_a_stride(
    tokenizer: str, registry: Registry, request: pytest.FixtureRequest
) -> None:
    asked = [row("who ?", "Bob"), row("what ?", "Paris")]
    found = encode(registry, asked, request.getfixturevalue(tokenizer), max_length=20, stride=4)
    assert {example["_item"] for example in found} == {0, 1}
    for item in (0, 1):
        own = [example for example in found if example["_item"] == item]
        assert len(own) >= 2
        assert all(len(example["input_ids"]) <= 20 for example in own)
        for one, other in pairwise(own):
            assert one["_spans"][-4:].tolist() == other["_spans"][:4].tolist()
        held = [example for example in own if example["labels"] != [0, 0]]
        assert held
        assert {answer_of(example).strip() for example in held} == {["Bob", "Paris"][item]}
        assert not any(example["_outside"] for example in own)


def test_a_window_with_a_part_of_the_answer_points_to_its_first_token(words: Any, registry: Registry) -> None:
    found = encode(registry, [row("who ?", CONTEXT[:-2])], words, max_length=20, stride=4)
    assert {tuple(example["labels"]) for example in found} == {(0, 0)}
    assert [example["_outside"] for example in found] == [True] + [False] * (len(found) - 1)
    task = registry.task("question-answering")
    assert task.notes(found, task.options(max_length=20)) == (
        "1 of 1 questions have an answer that no window of 20 tokens holds whole, and point to the first token: "
        "raise task.stride or task.max_length",
    )
    assert task.notes(encode(registry, [row("who ?", "Bob")], words), task.options()) == ()


def test_spaces_around_an_answer_and_characters_without_a_token(words: Any, registry: Registry) -> None:
    context = "\u200b\u200bAda lives in Rome\u200b"
    for text, start, wanted in [("Ada ", 2, "Ada"), ("\u200bAda", 1, "Ada"), (" Rome\u200b", 14, "Rome")]:
        given = {"context": context, "question": "who ?", "answers": {"text": [text], "answer_start": [start]}}
        assert answer_of(encode(registry, [given], words)[0]) == wanted


def test_the_same_answers_in_every_shape(words: Any, registry: Registry) -> None:
    hub = row("who ?", "Rome")
    start = hub["answers"]["answer_start"][0]
    plain = {"context": CONTEXT, "question": "who ?"}
    shapes = [
        hub,
        {**plain, "answers": [{"text": "Rome", "answer_start": start}]},
        {**plain, "answers": {"text": "Rome", "answer_start": start}},
        {**plain, "answers": "Rome", "answer_start": start},
        {**plain, "answers": "Rome", "answer_start": str(start)},
        {**plain, "answers": ["Rome"], "answer_start": [start]},
    ]
    found = [encode(registry, [shape], words)[0] for shape in shapes]
    assert all(example["labels"] == found[0]["labels"] for example in found)
    assert all(example["_question"] == found[0]["_question"] for example in found)


# Spans ----------------------------------------------------------------------------------------------------------------


def brute_force(starts: Any, ends: Any, longest: int, n_best: int) -> Any:
    first = sorted(range(len(starts)), key=lambda i: (-starts[i], i))[:n_best]
    last = sorted(range(len(ends)), key=lambda i: (-ends[i], i))[:n_best]
    pairs = [(starts[i] + ends[j], i, j) for i in first for j in last if i <= j < i + longest]
    return max(pairs, key=lambda pair: pair[0], default=None)


@pytest.mark.parametrize("seed", range(40))
def test_best_span_is_that_of_a_search_through_all_pairs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    tokens = int(draw.integers(1, 30))
    starts, ends = draw.integers(-4, 5, (2, tokens)).astype(np.float64)
    longest, n_best = int(draw.integers(1, 8)), int(draw.integers(1, 9))
    assert best_span(starts, ends, longest, n_best) == brute_force(starts, ends, longest, n_best)


def test_best_span_of_nothing() -> None:
    assert best_span(np.array([]), np.array([]), 30, 20) is None
    assert best_span(np.array([0.0, 9.0]), np.array([9.0, 0.0]), 30, 1) is None


def test_the_best_window_answers(words: Any, registry: Registry) -> None:
    """Logits that say the right thing in one window, and something worse in the others."""
    task = registry.task("question-answering")
    options = task.options(max_length=20, stride=4)
    examples = encode(registry, [row("who ?", "Paris"), row("what ?", "Ada")], words, max_length=20, stride=4)
    told: list[Any] = []
    for example in examples:
        scores = torch.zeros(1, 2, len(example["input_ids"]))
        if example["labels"] != [0, 0]:
            for side, place in enumerate(example["labels"]):
                scores[0, side, place] = 5.0
        told += task.answers(scores, [example], (), options)["span"]
    losses = {"loss": [1.0] * len(examples), "units": [2] * len(examples), "span": told}
    items = task.items(examples, losses, (), options)
    assert items["em"].tolist() == items["f1"].tolist() == [1.0, 1.0]
    windows = [sum(example["_item"] == item for example in examples) for item in (0, 1)]
    assert items["loss"].tolist() == windows
    assert items["units"].tolist() == [2 * count for count in windows]
    assert task.score(items) == {"loss": 0.5, "em": 1.0, "f1": 1.0}
    # The same windows in another order are other first items, and the same questions.
    backwards = {name: values[::-1] for name, values in losses.items()}
    assert task.items(examples[::-1], backwards, (), options)["f1"].tolist() == [1.0, 1.0]


def test_the_loss_is_that_of_transformers_and_padding_does_not_change_it(registry: Registry) -> None:
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = BertForQuestionAnswering(config).eval()
    task = registry.task("question-answering")
    ids = torch.randint(4, 32, (3, 7))
    labels = torch.tensor([[0, 0], [2, 4], [6, 6]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        output = model(**inputs, start_positions=labels[:, 0], end_positions=labels[:, 1])
        loss, units = task.losses(task.logits(output, inputs), labels)
        assert units.tolist() == [2, 2, 2]
        torch.testing.assert_close(loss.sum() / units.sum(), output.loss)
        padded = {name: torch.nn.functional.pad(value, (0, 5)) for name, value in inputs.items()}
        longer, _ = task.losses(task.logits(model(**padded), padded), labels)
    torch.testing.assert_close(longer, loss)


# Whole runs -----------------------------------------------------------------------------------------------------------


def spec_for(folder: Path, **training: Any) -> Spec:
    return Spec(
        name="qa",
        model=str(folder),
        task={"kind": "question-answering", "max_length": 48, "stride": 8, "max_answer_length": 8},
        training={"steps": 60, "batch_size": 8, "learning_rate": 1e-2, **training},
        rules=[
            {"role": r"(attention|mlp)\..*", "adapter": "lora", "rank": 4},
            {"role": r"head\.classifier", "adapter": "full"},
        ],
    )


def test_a_run_on_every_family(folder: Path, registry: Registry, tmp_path: Path) -> None:
    spec = spec_for(folder)
    data = {"train": rows(48), "validation": rows(12, 100), "test": rows(8, 200)}
    session = prepare(spec, registry, data=data)
    assert [name.partition(".")[0] for name in session.new_parameters] == ["qa_outputs", "qa_outputs"]
    assert {edit.site.role for edit in session.plan.edits if edit.rule == 1} == {"head.classifier"}
    assert spec.training is not None
    with operate(session.model, session.plan, registry=registry) as op:
        result = fit(session, op, spec.training, seed=0)
        found = evaluate(session, "test")
        before = logits(session, "validation", 4)
        op.merge()
        merged = logits(session, "validation", 4)
        op.unmerge()
        op.save(tmp_path / "adapter")
        assert evaluate(session, "test").metrics == found.metrics
    assert result.history[-1].validation_loss < result.history[0].validation_loss
    assert set(found.metrics) == {"loss", "em", "f1"}
    assert {name: len(array) for name, array in found.items.items()} == dict.fromkeys(("loss", "units", "em", "f1"), 8)
    tokens = [len(example["input_ids"]) for example in session.examples["validation"][:4]]
    assert [array.shape for array in before] == [(2, count) for count in tokens]
    assert max(abs(a - b).max() for a, b in zip(before, merged, strict=True)) < 1e-3
    with load_adapter(session.model, tmp_path / "adapter", registry=registry):
        assert evaluate(session, "test").metrics == found.metrics


def test_a_small_model_learns_where_the_answer_is(bert: Path, registry: Registry, tmp_path: Path) -> None:
    data = {"train": rows(48), "validation": rows(12, 100), "test": rows(12, 200)}
    result = train(spec_for(bert, steps=150), tmp_path / "run", registry=registry, data=data)
    metric = result.metrics["test"]["f1"]
    assert metric is not None
    assert metric > 0.9


def test_a_run_that_was_stopped_goes_on(bert: Path, registry: Registry, tmp_path: Path) -> None:
    data = {"train": rows(20), "validation": rows(6, 100)}
    spec = spec_for(bert, steps=6, save_every=2, evaluate_every=2)
    whole = train(spec, tmp_path / "whole", registry=registry, data=data)

    class Stop:
        """Stops the run when it has been evaluated for the third time: two steps behind its first checkpoint."""

        news = 0

        def __call__(self, done: int, total: int, told: str) -> None: ...

        def detail(self, text: str, *, is_news: bool = False) -> None:
            self.news += is_news
            if self.news == 3:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        train(spec, tmp_path / "cut", registry=registry, data=data, progress=Stop())
    assert train(spec, tmp_path / "cut", registry=registry, data=data, resume=True).metrics == whole.metrics


def test_a_model_with_three_labels_gets_a_head_of_two(tmp_path: Path, bert: Path, registry: Registry) -> None:
    """As one that was trained on inference between sentences has."""
    config = json.loads((bert / "config.json").read_text("utf-8"))
    names = {"0": "no", "1": "yes", "2": "perhaps"}
    other = tmp_path / "three"
    other.mkdir()
    for path in bert.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "config.json").write_text(json.dumps({**config, "id2label": names}), "utf-8")
    session = prepare(spec_for(other), registry, data={"train": rows(8), "validation": rows(4)})
    assert session.model.qa_outputs.weight.shape[0] == 2


def test_questions_about_one_context_stay_on_one_side(bert: Path, registry: Registry) -> None:
    given = [row(f"who {word} ?", "Ada", f"Ada {number}") for number in range(30) for word in ("wrote", "lives", "was")]
    session = prepare(spec_for(bert), registry, data={"train": given})
    sides = [{one["context"] for one in session.tables[split]} for split in ("train", "validation")]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


# What is refused ------------------------------------------------------------------------------------------------------


def flat(answers: Any, start: Any = 0, **keys: Any) -> dict[str, Any]:
    return {"context": CONTEXT, "question": "who ?", "answers": answers, "answer_start": start, **keys}


BAD_ROWS = [
    flat("Rome", 3),
    flat("Roma", 42),
    flat("Ada", -1),
    flat("Ada", 10**30),
    flat("Ada", 0.5),
    flat("Ada", True),
    flat(["Ada", "Bob"], [0]),
    flat([], []),
]
MORE_BAD_ROWS = [
    flat("  ", 3),
    flat(7, 3),
    flat("Ada", question=" "),
    flat("Ada", context=None),
    {"context": CONTEXT, "question": "who ?", "answers": "Ada"},
    {"context": CONTEXT, "question": "who ?", "answers": [{"text": "Ada"}]},
    {"context": CONTEXT, "question": "who ?", "answers": None},
]


def told(act: Callable[[], Any]) -> str:
    with pytest.raises(SurgeryError) as caught:
        act()
    assert isinstance(caught.value, DataError)
    return str(caught.value) + "\n"


@pytest.mark.parametrize(("name", "given"), [("qa-answers", BAD_ROWS), ("qa-rows", MORE_BAD_ROWS)])
def test_every_bad_row_is_told(name: str, given: list[Any], words: Any, registry: Registry) -> None:
    check_golden(name, told(lambda: encode(registry, given, words)))


def test_no_room(words: Any, registry: Registry) -> None:
    long = row("who " * 20 + "?", "Bob")
    short = {**row("who " * 20 + "?", "Bob", "Bob lives")}
    text = told(lambda: encode(registry, [row("who ?", "Bob"), long], words, max_length=32, stride=10))
    text += told(lambda: encode(registry, [long], words, max_length=32, stride=29))
    check_golden("qa-room", text)
    assert len(encode(registry, [short], words, max_length=32, stride=10)) == 1


def test_a_head_that_nothing_trains(bert: Path, registry: Registry) -> None:
    spec = spec_for(bert)
    spec = Spec(**{**spec.model_dump(), "rules": [{"role": "attention.query", "adapter": "lora", "rank": 2}]})
    with pytest.raises((PlanError, TrainingError)) as caught:
        prepare(spec, registry, data={"train": rows(8)})
    assert "head" in caught.value.hint
