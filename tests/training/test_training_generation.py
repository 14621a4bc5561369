"""Conditional generation: the format of an example, the search, and a run from rows to scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import WORDS, make_tokenizer

from surgery.errors import CheckpointError, DataError, TrainingError
from surgery.operation import operate
from surgery.operation.bits import same_bits
from surgery.registry import Generation, Registry
from surgery.spec import Spec
from surgery.training import generation as module
from surgery.training import prepare, train
from surgery.training.evaluation import inference
from surgery.training.fit import evaluate, fit
from surgery.training.session import Session

KIND = "conditional-generation"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(["<end>", "<unk>"], unk_token="<unk>", eos_token="<end>", pad_token="<end>")


def rows(count: int, start: int = 0, references: int = 2) -> list[dict[str, str]]:
    """Rows of `references` targets for each source, which say the source's words in another order."""
    found = []
    for index in range(start, start + count):
        source = [WORDS[(index * 7 + place * 3) % len(WORDS)] for place in range(3 + index % 3)]
        found += [
            {"source": " ".join(source), "target": " ".join(source[::-1] + ["is"] * extra)}
            for extra in range(1, references + 1)
        ]
    return found


@pytest.fixture
def spec(gpt2: Path) -> Callable[..., Spec]:
    def make(training: dict[str, Any] | None = None, **task: Any) -> Spec:
        return Spec(
            name="write",
            model=str(gpt2),
            task={"kind": KIND, "max_length": 24, "beams": 3, "max_new_tokens": 8, "length_penalty": 3.0, **task},
            training={"steps": 12, "batch_size": 8, "learning_rate": 2e-2, **(training or {})},
            rules=[{"role": r"(attention|mlp)\..*", "adapter": "lora", "rank": 4, "alpha": 16}],
        )

    return make


@pytest.fixture
def session(spec: Callable[..., Spec], registry: Registry) -> Session:
    return prepare(spec(), registry, data={"train": rows(40), "validation": rows(5, 50), "test": rows(7, 60)})


# The format ----------------------------------------------------------------------------------------------------------


def encode(registry: Registry, tokenizer: Any, *texts: tuple[Any, Any], **options: Any) -> Any:
    task = registry.task(KIND)
    found = [{"source": source, "target": target} for source, target in texts]
    return task.encode(found, tokenizer, (), task.options(**options), lambda index: f"row {index + 1}")


def test_source_separator_target_end(registry: Registry, tokenizer: Any) -> None:
    (example,) = encode(registry, tokenizer, ("good film", "the plot was fine"))
    assert tokenizer.convert_ids_to_tokens(example["input_ids"]) == [
        "good", "film", "<end>", "the", "plot", "was", "fine", "<end>",
    ]  # fmt: skip
    assert example["labels"] == [-100, -100, -100, *example["input_ids"][3:]]
    assert example["attention_mask"] == [1] * 8


def test_the_papers_format_with_gpt2s_own_way_of_spaces(registry: Registry) -> None:
    """The lead is cut together with the target: `' ' + completion`, one token where the vocabulary has it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, " ": 3, " b": 4}
    backend = Tokenizer(models.BPE(vocabulary, [(" ", "b")]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    (example,) = encode(registry, tokenizer, ("ab", "ba"))
    assert example["input_ids"] == [1, 2, 0, 4, 1, 0]
    assert example["labels"] == [-100, -100, -100, 4, 1, 0]


def test_texts_around(registry: Registry, tokenizer: Any) -> None:
    (example,) = encode(registry, tokenizer, ("film", "plot"), prefix="the ", separator="was", suffix=" is")
    assert tokenizer.convert_ids_to_tokens(example["input_ids"]) == ["the", "film", "was", "plot", "is", "<end>"]
    assert [label != -100 for label in example["labels"]] == [False] * 3 + [True] * 3


def test_a_tokenizer_that_begins_texts(registry: Registry) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(
        ["<end>", "<unk>", "<s>"], unk_token="<unk>", eos_token="<end>", bos_token="<s>", pad_token="<end>"
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 2)]
    )
    (example,) = encode(registry, tokenizer, ("film", "plot"), separator="was")
    assert tokenizer.convert_ids_to_tokens(example["input_ids"]) == ["<s>", "film", "was", "plot", "<end>"]
    (example,) = encode(registry, tokenizer, ("film", "plot"))
    assert tokenizer.convert_ids_to_tokens(example["input_ids"]) == ["<s>", "film", "<s>", "plot", "<end>"]


def test_cut_on_the_right_or_refused(registry: Registry, tokenizer: Any) -> None:
    pair = ("good film", "the plot was fine")
    (example,) = encode(registry, tokenizer, pair, max_length=5)
    assert tokenizer.convert_ids_to_tokens(example["input_ids"]) == ["good", "film", "<end>", "the", "plot"]
    with pytest.raises(DataError, match="source and target are 8 tokens, 3 of them the source's") as caught:
        encode(registry, tokenizer, pair, max_length=5, truncate=False)
    assert caught.value.hint == "raise task.max_length (5), write truncate: true, or leave the row out"
    with pytest.raises(DataError) as caught:
        encode(registry, tokenizer, ("film", "plot"), pair, max_length=3)
    assert caught.value.where == "row 2"
    assert caught.value.hint == "raise task.max_length (3), or leave the row out"


def test_rows_without_texts(registry: Registry, tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        encode(registry, tokenizer, ("film", 3), (None, "plot"))
    assert [(problem.where, problem.what) for problem in caught.value.problems] == [
        ("row 1", "the target must be text, not int"),
        ("row 2", "the source must be text, not NoneType"),
    ]


def test_a_tokenizer_without_an_end(registry: Registry) -> None:
    with pytest.raises(DataError, match="no end token"):
        encode(registry, make_tokenizer(["<unk>"], unk_token="<unk>"), ("film", "plot"))


def generation(registry: Registry, tokenizer: Any, found: list[dict[str, str]], **options: Any) -> Generation:
    task = registry.task(KIND)
    made = task.generation(found, tokenizer, task.options(**options))
    assert made is not None
    return made


def test_rows_of_one_source_are_one_item(registry: Registry, tokenizer: Any) -> None:
    pairs = [("a", "good"), ("the", "bad"), ("a", "fine"), ("a", "slow")]
    found = generation(registry, tokenizer, [{"source": one, "target": other} for one, other in pairs])
    assert list(found.items) == [0, 1, 0, 0]
    assert list(found.sources) == ["a", "the"]
    assert found.prompts == [[3, 0], [2, 0]]
    exact = found.measure(["slow", "good"])
    assert exact["rouge_l"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("generate", "kept"), [(1, [0]), (2, [0, 3]), (4, [0, 1, 3, 5]), (7, list(range(7))), (9, list(range(7)))]
)
def test_some_sources_evenly_spread(registry: Registry, tokenizer: Any, generate: int, kept: list[int]) -> None:
    found = generation(registry, tokenizer, rows(7), generate=generate)
    every = generation(registry, tokenizer, rows(7))
    assert list(found.sources) == [every.sources[index] for index in kept]
    counted = found.measure(["film"] * len(kept))
    assert np.flatnonzero(counted["written"]).tolist() == kept


def test_stops_are_single_tokens(registry: Registry, tokenizer: Any) -> None:
    assert generation(registry, tokenizer, rows(1), stop=["film"]).stops == (2 + WORDS.index("film"),)
    with pytest.raises(DataError, match="'film book' is 2 tokens"):
        generation(registry, tokenizer, rows(1), stop=["film book"])


# Losses --------------------------------------------------------------------------------------------------------------


def test_losses_are_of_the_targets_alone(session: Session) -> None:
    batch = session.collator(session.examples["train"][:5])
    with torch.no_grad():
        logits = session.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss, units = session.task.losses(logits, batch["labels"])
    for row, example in enumerate(session.examples["train"][:5]):
        logs = logits[row].log_softmax(-1)
        counted = [place for place, label in enumerate(example["labels"]) if label != -100]
        by_hand = -sum(logs[place - 1, example["input_ids"][place]] for place in counted)
        assert float(loss[row]) == pytest.approx(float(by_hand), rel=1e-5)
        assert int(units[row]) == len(counted)


def test_a_batch_without_any_target_has_no_loss(session: Session) -> None:
    loss, units = session.task.losses(torch.zeros(2, 3, 5), torch.full((2, 3), -100))
    assert loss.tolist() == [0, 0]
    assert units.tolist() == [0, 0]


def trained(session: Session, spec: Spec, **options: Any) -> tuple[dict[str, torch.Tensor], Any]:
    assert spec.training is not None
    with operate(session.model, session.plan, registry=session.registry) as operation:
        result = fit(session, operation, spec.training, seed=0, **options)
        return {name: tensor.detach().clone() for name, tensor in operation.trainable().items()}, result


def test_validation_while_training_writes_nothing(
    session: Session, spec: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("written while training")

    monkeypatch.setattr("surgery.training.evaluation.write_texts", refuse)
    _, result = trained(session, spec({"evaluate_every": 4}))
    assert [point.step for point in result.history] == [0, 4, 8, 12]
    assert all(np.isnan(point.validation_metric) for point in result.history)
    assert all(point["validation_metric"] is None for point in result.to_dict()["history"])
    assert result.history[-1].validation_loss < result.history[0].validation_loss


# The search ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def moved(session: Session) -> Iterator[tuple[Session, Any]]:
    """A session whose operated model has learnt something, so that its texts differ from one another."""
    assert session.spec.training is not None
    with operate(session.model, session.plan, registry=session.registry) as operation:
        fit(session, operation, session.spec.training.model_copy(update={"steps": 60}), seed=0)
        yield session, operation


def write(session: Session, found: Generation, **told: Any) -> list[str]:
    with inference(session, session.model):
        return module.write_texts(session, session.model, found, told.get("progress"), "writing")


def test_texts_are_those_of_prompts_written_one_by_one(moved: tuple[Session, Any]) -> None:
    """Padding on the left stands in nobody's way: batches give what `generate` gives for each prompt alone."""
    session, _ = moved
    found = module.generation_of(session, "test")
    assert found is not None
    assert len({len(prompt) for prompt in found.prompts}) > 1, "the batch must be padded for this to mean anything"
    texts = write(session, found)
    assert len(set(texts)) > 2
    alone = []
    for prompt in found.prompts:
        with inference(session, session.model):
            row = session.model.generate(
                input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                num_beams=3, max_new_tokens=8, length_penalty=3.0, do_sample=False, pad_token_id=0, eos_token_id=0,
            )[0, len(prompt) :].tolist()  # fmt: skip
        alone.append(session.tokenizer.decode(row[: row.index(0)] if 0 in row else row))
    assert texts == alone
    assert write(session, found) == texts


def test_merged_and_unmerged_models_write_the_same(moved: tuple[Session, Any]) -> None:
    session, operation = moved
    plain = evaluate(session, "test", generate=True)
    operation.merge()
    merged = evaluate(session, "test", generate=True)
    operation.unmerge()
    assert merged.texts == plain.texts
    assert merged.metrics["bleu"] == plain.metrics["bleu"]
    with operation.disabled():
        assert evaluate(session, "test", generate=True).texts != plain.texts


def test_what_the_checkpoint_recommends_does_not_matter(moved: tuple[Session, Any]) -> None:
    session, _ = moved
    before = evaluate(session, "test", generate=True).texts
    recommended = session.model.generation_config
    recommended.update(do_sample=True, temperature=5.0, top_k=3, repetition_penalty=3.0, min_new_tokens=7)
    try:
        assert evaluate(session, "test", generate=True).texts == before
        assert session.model.generation_config is recommended
        assert recommended.temperature == 5.0
    finally:
        session.model.generation_config = type(recommended)()


def test_settings_reach_the_search(moved: tuple[Session, Any]) -> None:
    from dataclasses import replace

    session, _ = moved
    found = module.generation_of(session, "test")
    assert found is not None
    words = [text.split() for text in write(session, replace(found, max_new_tokens=2))]
    assert max(map(len, words)) == 2
    repeated = [text.split() for text in write(session, found)]
    assert any(len(set(text)) < len(text) for text in repeated)
    assert all(
        len(set(text.split())) == len(text.split()) for text in write(session, replace(found, no_repeat_ngram=1))
    )
    stop = max({word for text in repeated for word in text}, key=lambda word: sum(word in text for text in repeated))
    token = session.tokenizer.convert_tokens_to_ids(stop)
    assert module._settings(session, replace(found, stops=(token,))).eos_token_id == [0, token]
    stopped = write(session, replace(found, stops=(token,)))
    assert all(stop not in text.split() for text in stopped)
    scores = {penalty: write(session, replace(found, length_penalty=penalty)) for penalty in (-8.0, 8.0)}
    assert sum(map(len, scores[-8.0])) < sum(map(len, scores[8.0]))


def test_evaluation_with_texts(moved: tuple[Session, Any]) -> None:
    session, _ = moved
    told: list[tuple[int, int, str]] = []
    plain = evaluate(session, "test")
    found = evaluate(session, "test", generate=True, progress=lambda *what: told.append(what))
    assert set(plain.metrics) == {"loss", "perplexity"}
    assert set(found.metrics) == {"loss", "perplexity", "bleu", "nist", "chrf", "rouge_l"}
    assert found.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-12)
    assert {len(array) for array in found.items.values()} == {7}, "two rows for each of seven sources"
    assert found.items["units"].tolist() == plain.items["units"].reshape(7, 2).sum(1).tolist()
    assert found.items["loss"].tolist() == plain.items["loss"].reshape(7, 2).sum(1).tolist()
    assert [source for source, _ in found.texts] == list(dict.fromkeys(row["source"] for row in rows(7, 60)))
    assert told[-1] == (7, 7, "generating test")
    assert not plain.texts


# What is refused -----------------------------------------------------------------------------------------------------


def test_prompts_that_leave_no_room(spec: Callable[..., Spec], registry: Registry) -> None:
    data = {"train": rows(20), "validation": rows(3, 50)}
    with pytest.raises(TrainingError, match="the longest prompt has 6 tokens, and 30 new ones exceed the 32") as caught:
        prepare(spec(max_new_tokens=30), registry, data=data)
    assert caught.value.where == "task.max_new_tokens"
    assert caught.value.hint == "write max_new_tokens: 26 or less under task:"


def test_encoders_with_decoders(spec: Callable[..., Spec], registry: Registry, tmp_path: Path) -> None:
    from transformers import BartConfig

    BartConfig(vocab_size=64, d_model=16).save_pretrained(tmp_path)
    data = {"train": rows(20), "validation": rows(3, 50)}
    with pytest.raises(CheckpointError, match="bart reads with an encoder and writes with a decoder"):
        prepare(spec(), registry, data=data, model=str(tmp_path))


# Whole runs ----------------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_the_texts(spec: Callable[..., Spec], registry: Registry, tmp_path: Path) -> None:
    data = {"train": rows(40), "validation": rows(4, 50), "test": rows(3, 60)}
    result = train(spec(), tmp_path / "run", registry=registry, data=data)
    lines = [json.loads(line) for line in (tmp_path / "run" / "generated.jsonl").read_text("utf-8").splitlines()]
    assert [line["split"] for line in lines] == ["validation"] * 4 + ["test"] * 3
    assert lines[0]["source"] == rows(4, 50)[0]["source"]
    assert set(lines[0]) == {"split", "source", "text"}
    assert result.metrics["test"]["bleu"] is not None
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert last["validation_metric"] is None
    again = train(spec(), tmp_path / "again", registry=registry, data=data)
    assert again.metrics == result.metrics
    names = [path.name for path in (tmp_path / "run").iterdir()]
    assert (tmp_path / "again" / "generated.jsonl").read_bytes() == (tmp_path / "run" / "generated.jsonl").read_bytes()
    assert "generated.jsonl" in names


def test_a_study_compares_by_bleu(gpt2: Path, registry: Registry, tmp_path: Path) -> None:
    from surgery.study import StudySpec, compare

    for name, found in {"train": rows(40), "validation": rows(4, 50), "test": rows(9, 60)}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    study = StudySpec(
        name="writing",
        model=str(gpt2),
        task={"kind": KIND, "max_length": 24, "beams": 2, "max_new_tokens": 6, "length_penalty": 3.0, "generate": 8},
        data={name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")},
        training={"steps": 20, "batch_size": 8},
        seeds=[1, 2, 3],
        arms={
            "lora": {"rules": [{"role": r"attention\..*", "adapter": "lora", "rank": 2}], "learning_rate": 2e-2},
            "full": {"rules": [{"role": ".*", "adapter": "full"}], "learning_rate": 1e-2},
        },
        reference="full",
        margin=1.0,
    )
    found = compare(study, tmp_path / "out", registry=registry)
    assert found.summary.metric == {"name": "bleu", "greater_is_better": True}
    for record in found.records:
        assert record["items"] is not None
        items = {name: np.array(values) for name, values in record["items"].items()}
        assert registry.task(KIND).score(items) == record["test"]
        assert {len(array) for array in items.values()} == {9}
        assert sum(items["written"]) == 8
        if record["merge"]:
            assert record["merge"]["differ"] == 0
    pair = found.summary.row("lora").pair
    assert pair is not None
    assert (pair.items, pair.seeds) == (9, 3)
    assert pair.item_part > 0


def test_a_few_steps_of_e2e_on_a_pretrained_decoder(real_data: Path, real_models: Path, tmp_path: Path) -> None:
    """Real meaning representations and references, a Llama that has read stories: it learns, and texts are scored."""
    from surgery.registry import load_registry

    folder = real_models / "tinystories-llama-260k"
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} in {real_models}")
    everything = load_registry()
    lines = (real_data / "e2e_nlg" / "test.jsonl").read_text("utf-8").splitlines()
    test = [row for row in map(json.loads, lines) if row["mr"].startswith("name[Blue Spice], eatType[coffee shop], ")]
    plan = Spec(
        name="e2e",
        model=str(folder),
        task={"kind": KIND, "beams": 2, "no_repeat_ngram": 4, "max_new_tokens": 32, "generate": 3, "max_length": 400},
        data={"columns": {"source": "mr", "target": "ref"}, "limit": {"train": 400, "validation": 40}},
        training={"steps": 25, "batch_size": 8, "learning_rate": 5e-3, "label_smoothing": 0.1},
        rules=[{"role": r"(attention|mlp)\..*", "adapter": "lora", "rank": 8, "alpha": 32}],
    )
    data = {
        name: real_data / "e2e_nlg" / f"{file}.jsonl" for name, file in (("train", "train"), ("validation", "valid"))
    }
    session = prepare(plan, everything, data={**data, "test": test})
    pristine = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    with operate(session.model, session.plan, registry=everything) as operation:
        assert plan.training is not None
        result = fit(session, operation, plan.training, seed=0)
        found = evaluate(session, "test", generate=True)
    assert result.history[-1].validation_loss < 0.75 * result.history[0].validation_loss
    assert len(found.items["loss"]) == len({row["mr"] for row in test}) < len(test)
    assert len(found.texts) == 3
    assert found.metrics["chrf"] > 5
    assert all(bool(same_bits(session.model.state_dict()[name], pristine[name]).all()) for name in pristine)
