"""Probes of what a base knows: hand-computed ranks, masks that never move, and rows that are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import WORDS, make_tokenizer, sentences, write_lines

from surgery.errors import DataError
from surgery.registry import Registry, load_registry
from surgery.spec import DataSpec, Rule, Spec
from surgery.training import Session, prepare
from surgery.training.masked import MaskedProbe, hidden_positions
from surgery.training.overlap import overlap
from surgery.training.probes import Probe, make_probe
from surgery.training.retrieval import RetrievalProbe, _pooled, reciprocal_ranks

SPECIAL = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]"]
GOLDEN = Path(__file__).parent / "golden"
NAMES = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("probes")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=32, max_position_embeddings=32, **sizes)
    gpt2 = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    for name, model in (("mlm", BertForMaskedLM(config)), ("body", BertModel(config)), ("lm", GPT2LMHeadModel(gpt2))):
        if name == "mlm":  # a bias of zeros would hide that the head is drawn anew
            torch.nn.init.normal_(model.cls.predictions.bias)
        model.save_pretrained(folder / name)
        make_tokenizer(SPECIAL, **NAMES).save_pretrained(folder / name)
    for split, (count, start) in {"train": (24, 0), "validation": (12, 40), "test": (12, 60)}.items():
        write_lines(folder / f"{split}.jsonl", sentences(count, start))
    write_lines(folder / "texts.jsonl", [{"text": text} for text in _texts(9)])
    pairs = [{"query": text, "passage": f"{text} {text}"} for text in _texts(7)]
    write_lines(folder / "pairs.jsonl", pairs)
    return folder


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _texts(count: int) -> list[str]:
    return [" ".join(WORDS[(3 * i + j * (i + 1)) % len(WORDS)] for j in range(2 + i)) for i in range(count)]


def session_of(folder: Path, model: str, registry: Registry, seed: int = 0) -> Session:
    kind = "causal-lm" if model == "lm" else "text-classification"
    data = {name: str(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
    rules = [Rule(role=".*", adapter="full", tied="share")]
    training = {"steps": 2, "batch_size": 4, "learning_rate": 0.1}
    spec = Spec(
        name="a",
        seed=seed,
        model=str(folder / model),
        task={"kind": kind, "max_length": 16},
        data=data,
        training=training,
        rules=rules,
    )
    return prepare(spec, registry)


def probe_of(session: Session, folder: Path, rows: str, kind: Any = None, **options: Any) -> Probe:
    return make_probe(session, DataSpec(test=str(folder / rows)), kind, **options)


def test_ranks_are_those_computed_by_hand() -> None:
    queries = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    passages = np.array([[3.0, 0.1], [1.0, 0.2], [1.0, 0.0]])
    # Query 0: cosines .9994, .9806, 1 -> rank 2. Query 1: .0333, .1961, 0 -> rank 1. Query 2: .7304, .8321, .7071 -> 3.
    assert reciprocal_ranks(queries, passages).tolist() == [1 / 2, 1.0, 1 / 3]


def test_a_model_that_finds_all_texts_alike_is_not_at_the_top() -> None:
    same = np.ones((4, 3))
    # The right one is level with three others: it counts as fourth and first, on average 1 + 3 / 2.
    assert reciprocal_ranks(same, same).tolist() == [1 / 2.5] * 4
    assert reciprocal_ranks(np.zeros((2, 3)), np.ones((2, 3))).tolist() == [1 / 1.5] * 2


def test_vectors_that_are_not_finite_have_no_rank() -> None:
    queries = np.array([[np.nan, 0.0], [0.0, 1.0]])
    assert np.isnan(reciprocal_ranks(queries, np.eye(2))).tolist() == [True, False]


def test_retrieval_is_the_mean_pooled_cosine_of_transformers(folder: Path, registry: Registry) -> None:
    session = session_of(folder, "body", registry)
    probe = probe_of(session, folder, "pairs.jsonl")
    assert (probe.kind, probe.why, probe.passes) == ("retrieval", "the rows hold query and passage", 14)
    assert probe.chance == pytest.approx(sum(1 / rank for rank in range(1, 8)) / 7)
    found = probe.measure(session)
    body, rows = session.model.bert, _rows(folder / "pairs.jsonl")

    def vector(text: str) -> np.ndarray:
        with torch.no_grad():
            states = body(**session.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean: np.ndarray = states.double().mean(dim=0).numpy()
        return mean / np.linalg.norm(mean)

    assert isinstance(probe, RetrievalProbe)
    batched = _pooled(session, [*probe.queries, *probe.passages])  # of several lengths, so padded
    alone = [vector(row[side]) for side in ("query", "passage") for row in rows]
    np.testing.assert_allclose(batched / np.linalg.norm(batched, axis=1, keepdims=True), alone, atol=1e-6)
    queries, passages = ([vector(row[side]) for row in rows] for side in ("query", "passage"))
    for index, query in enumerate(queries):
        cosines = [float(query @ passage) for passage in passages]
        rank = sorted(cosines, reverse=True).index(cosines[index]) + 1
        assert found.values[index] == pytest.approx(1 / rank)
    assert found.score == found.values.mean()
    assert found.weights.tolist() == [1.0] * 7


def test_masks_depend_on_text_and_place_alone(folder: Path, registry: Registry) -> None:
    places = list(range(200))
    hidden = hidden_positions("the good book", places, 0.15)
    assert 15 <= len(hidden) <= 45
    assert sorted(hidden)[:7] == [4, 10, 16, 20, 29, 30, 41]  # the same on every machine
    assert hidden_positions("the good book", places[:100], 0.15) == {place for place in hidden if place < 100}
    assert hidden_positions("the bad book", places, 0.15) != hidden
    assert len(hidden_positions("a", [0], 1e-9)) == 1
    one, other = session_of(folder, "mlm", registry), session_of(folder, "mlm", registry, seed=5)
    first, second = (probe_of(session, folder, "texts.jsonl") for session in (one, other))
    assert isinstance(first, MaskedProbe)
    assert isinstance(second, MaskedProbe)
    assert first.examples == second.examples
    assert sum(token == 2 for example in first.examples for token in example["input_ids"]) >= 9


def test_the_masked_loss_is_that_of_the_checkpoint_before_and_after(folder: Path, registry: Registry) -> None:
    from transformers import BertForMaskedLM

    from surgery.operation import operate

    session = session_of(folder, "mlm", registry)
    probe = probe_of(session, folder, "texts.jsonl")
    assert (probe.kind, probe.why) == ("masked-lm", "the checkpoint holds a masked-LM head")
    assert isinstance(probe, MaskedProbe)
    before = probe.measure(session)
    again = probe.measure(session)
    assert before.values.tolist() == again.values.tolist()
    plain = BertForMaskedLM.from_pretrained(folder / "mlm").eval()
    for index, example in enumerate(probe.examples):
        with torch.no_grad():
            scores = plain(input_ids=torch.tensor([example["input_ids"]])).logits[0]
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor(example["labels"]), reduction="sum")
        assert before.values[index] == pytest.approx(float(loss), abs=1e-5)
    with operate(session.model, session.plan, registry=registry) as operation:
        untouched = probe.measure(session)
        assert untouched.values.tolist() == before.values.tolist()
        with torch.no_grad():
            for parameter in operation.trainable().values():
                parameter.mul_(1.2)
        assert probe.measure(session).score != before.score
    assert probe.measure(session).values.tolist() == before.values.tolist()


def test_the_loss_of_a_language_model_is_its_own(folder: Path, registry: Registry) -> None:
    from surgery.training.fit import evaluate

    session = session_of(folder, "lm", registry)
    probe = probe_of(session, folder, "test.jsonl")
    assert (probe.kind, probe.why) == ("loss", "causal-lm is a language model's own task")
    found = probe.measure(session)
    assert found.score == evaluate(session, "test").metrics["loss"]
    assert probe.chance == pytest.approx(np.log(32))


def test_labelled_rows_keep_their_meaning(folder: Path, registry: Registry) -> None:
    session = session_of(folder, "mlm", registry)
    probe = probe_of(session, folder, "test.jsonl")
    assert (probe.kind, probe.why) == ("loss", "the rows hold what the task reads, label included")
    assert probe_of(session, folder, "test.jsonl", "masked-lm").kind == "masked-lm"


REFUSED: Mapping[str, tuple[str, list[Any], Any]] = {
    "no-head": ("body", [{"text": "the film"}], None),
    "no-head-asked-for": ("body", [{"text": "the film"}], "masked-lm"),
    "one-pair": ("body", [{"query": "film", "passage": "plot"}], None),
    "twice": ("body", [{"query": "film", "passage": "a plot"}, {"query": "book", "passage": "a  plot"}], None),
    "no-text": ("body", [{"query": "film", "passage": 3}, {"query": " ", "passage": "a plot"}], None),
    "no-column": ("body", [{"question": "film", "passage": "a plot"}], "retrieval"),
    "other-labels": ("mlm", [{"text": "the film", "label": "World"}], None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_cannot_be_used(case: str, folder: Path, registry: Registry, tmp_path: Path) -> None:
    model, rows, kind = REFUSED[case]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        make_probe(session_of(folder, model, registry), DataSpec(test=str(path)), kind)
    text = str(caught.value).replace(str(path), "rows.jsonl").replace(str(folder / model), "MODEL") + "\n"
    golden = GOLDEN / f"{case}.txt"
    if os.environ.get("SURGERY_REGENERATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, "utf-8")
    assert golden.is_file(), f"SURGERY_REGENERATE_GOLDEN=1 writes {golden.name}"
    assert text == golden.read_text("utf-8")


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(REFUSED)


def test_a_text_longer_than_the_model(folder: Path, registry: Registry) -> None:
    session = session_of(folder, "body", registry)
    with pytest.raises(DataError, match="max_length is 33 tokens, the model takes 32"):
        probe_of(session, folder, "pairs.jsonl", "retrieval", max_length=33)


def test_overlap_counts_texts_and_runs_of_words() -> None:
    task = ["The film, was GOOD!", "one two three four five six seven eight nine", "你好，世界"]
    same = overlap(["the film was good", "the film was good.", "a book"], task)
    assert (same.texts, same.shared_texts, same.runs, same.shared_runs) == (2, 1, 2, 1)
    part = overlap(["zero one two three four five six seven eight"], task)
    assert (part.shared_texts, part.runs, part.shared_runs) == (0, 2, 1)
    assert overlap(["你好 世界"], task).shared_texts == 1
    assert overlap(["你好"], task).shared_texts == 0
    none = overlap(["..."], task)
    assert (none.texts, none.runs, none.shared_runs) == (0, 0, 0)
