"""The contract of tasks, as one function that an author's test calls: nothing is trained and nothing downloaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from surgery.errors import SurgeryError
from surgery.registry import Provenance, Registered, Registry, TaskType, asked
from surgery.registry.checks import check_task_type
from surgery.training.collate import Collator
from surgery.training.generation import by_item

__all__ = ["check_task"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SIZES: Mapping[str, Any] = {"n_embd": 8, "n_layer": 1, "n_head": 2}
_BERT: Mapping[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_DRAWS = 20
_HERE = Provenance("here", "given in Python", "")


def check_task(
    task: TaskType[Any],
    rows: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
) -> None:
    """Check a task on rows of its author's: from rows to examples, losses, answers, items, and scores of drawn items.

    Args:
        task: the task type.
        rows: a few rows, with the task's own names of the columns. Their labels are those of the training split.
        options: the keys beside `kind`; by default none.
        tokenizer: of transformers; by default one whose words are those of the rows, between white space.

    Raises:
        AssertionError: a promise is broken; the message says which.
        PluginError: a method raised an error, or returned another kind or shape than its contract's; it says which.
        DataError: what `encode` says of the rows.
    """
    assert isinstance(task, TaskType), (
        f"give an instance, not the class: check_task({getattr(task, '__name__', task)}())"
    )
    assert rows, "give a few rows"
    check_task_type(task, _HERE)
    guarded = asked(task, _registry(task))
    chosen = task.options.model_validate(dict(options or {}))
    words = _tokenizer(rows) if tokenizer is None else tokenizer
    _check_primary(guarded, options or {})
    labels = tuple(guarded.labels(rows, chosen))
    assert labels == tuple(guarded.labels(rows, chosen)), "labels gives something else when it is asked again"
    assert len(set(labels)) == len(labels), f"labels names a label twice: {labels}"
    examples = guarded.encode(rows, words, labels, chosen, _where)
    assert examples, "encode returned no example"
    again = guarded.encode(rows, words, labels, chosen, _where)
    assert _seen(examples) == _seen(again), "encode gives other examples when it is asked again"
    for note in guarded.notes(examples, chosen):
        assert isinstance(note, str), f"notes must be texts, not {note!r}"
    items = _items(guarded, examples, labels, chosen, words)
    generation = guarded.generation(rows, words, chosen)
    if generation is not None:
        assert len(generation.items) == len(examples), "generation.items must name an item for each example"
        items = {**by_item(generation, items), **generation.measure(["a text"] * len(generation.prompts))}
    _check_items(items)
    _check_scores(guarded, items, {guarded.primary(chosen)[0], "loss", *task.metrics})


def _registry(task: TaskType[Any]) -> Registry:
    tasks = {task.name: Registered(task, _HERE)}
    return Registry(adapters={}, architectures={}, models={}, datasets={}, tasks=tasks)


def _seen(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the model is given of `examples`."""
    return [{key: value for key, value in example.items() if key[0] != "_"} for example in examples]


def _where(index: int) -> str:
    return f"row {index}"


def _check_primary(task: TaskType[Any], options: Mapping[str, Any]) -> None:
    name, is_greater = task.primary(task.options.model_validate(dict(options)))
    assert isinstance(name, str), f"primary must return a metric's name, not {name!r}"
    assert isinstance(is_greater, bool), f"primary must say by True or False whether more of {name} is better"
    for metric, direction in task.metrics.items():
        try:
            found = task.primary(task.options.model_validate({**options, "metric": metric}))
        except (SurgeryError, ValidationError) as error:
            raise AssertionError(f"metrics holds {metric!r}, and `metric: {metric}` is refused: {error}") from error
        assert found == (metric, direction), f"primary returns {found} for the metric {metric!r} of metrics"


def _items(
    task: TaskType[Any], examples: Sequence[Mapping[str, Any]], labels: tuple[str, ...], options: Any, tokenizer: Any
) -> Mapping[str, np.ndarray]:
    """Return the items of all examples, as one batch."""
    batch = Collator(tokenizer.pad_token_id or 0)(examples)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    model = _model(task, batch, task.outputs(labels, options))
    with torch.no_grad():
        logits = task.logits(model(**inputs), inputs)
        assert isinstance(logits, torch.Tensor), f"logits must return a tensor, not {type(logits).__name__}"
        loss, units = task.losses(logits, batch["labels"])
        answers = task.answers(logits, examples, labels, options)
    assert bool(loss.isfinite().all()), "losses gives NaN or infinity for the finite logits of a model"
    # The Trainer counts labels that are not -100; a task that counts otherwise would be trained on another scale.
    counted = (batch["labels"] != -100).reshape(len(examples), -1).sum(dim=1)
    assert torch.equal(units.long(), counted), (
        f"losses counts {units.tolist()} units, and the examples have {counted.tolist()} labels that are not -100"
    )
    told = {"loss": loss.double().tolist(), "units": units.tolist(), **answers}
    return task.items(examples, told, labels, options)


def _check_items(items: Mapping[str, np.ndarray]) -> None:
    for name in ("loss", "units"):
        assert name in items, f"items returned no {name!r}"
    for name, array in items.items():
        values = np.asarray(array)
        assert values.ndim == 1, f"items returned {name!r} of shape {values.shape}; wanted: one number for each item"
        assert values.dtype.kind in "iuf", f"items returned {name!r} of {values.dtype}: records hold numbers"
        assert len(values) == len(items["loss"]), (
            f"items returned {len(values)} of {name!r} and {len(items['loss'])} of 'loss'"
        )


def _check_scores(task: TaskType[Any], items: Mapping[str, np.ndarray], wanted: set[str]) -> None:
    scores = task.score(items)
    missing = sorted(wanted - scores.keys())
    assert not missing, f"score returned no {' and no '.join(map(repr, missing))}"
    for drawn, which in _draws(items):
        for name, value in task.score(drawn).items():
            assert math.isfinite(value), f"score gives {value} for {name!r} of {which}: any choice needs a value"
    # As a study reads them back: lists of JSON, floats all of them.
    again = task.score({name: np.array([float(value) for value in array]) for name, array in items.items()})
    for name, value in scores.items():
        assert math.isclose(value, again[name], rel_tol=1e-9, abs_tol=1e-12), (
            f"score gives {value} for {name!r}, and {again[name]} of the same items as floats, which a study keeps"
        )


def _draws(items: Mapping[str, np.ndarray]) -> Iterator[tuple[dict[str, np.ndarray], str]]:
    count = len(items["loss"])
    generator = np.random.default_rng(0)
    yield {name: np.asarray(array) for name, array in items.items()}, "all items"
    for index in range(min(count, _DRAWS)):
        yield {name: np.asarray(array)[[index] * 3] for name, array in items.items()}, f"item {index} thrice"
    for _ in range(_DRAWS):
        chosen = generator.integers(0, count, count)
        yield {name: np.asarray(array)[chosen] for name, array in items.items()}, f"items {chosen.tolist()}"


def _model(task: TaskType[Any], batch: Mapping[str, torch.Tensor], outputs: int | None) -> Any:
    """Return a tiny model with the head that the task asks for."""
    import transformers

    auto = getattr(transformers, task.auto_class, None)
    assert auto is not None, f"transformers has no {task.auto_class!r}: auto_class must name one of its Auto classes"
    ids = batch["input_ids"]
    shape = {
        "vocab_size": int(ids.max()) + 1,
        "pad_token_id": 0,
        **({} if outputs is None else {"num_labels": outputs}),
    }
    length = max(ids.shape[1], 8)
    for config in (
        transformers.GPT2Config(**{**_SIZES, "n_positions": length, **shape}),
        transformers.BertConfig(**{**_BERT, "max_position_embeddings": length, **shape}),
    ):
        if type(config) in auto._model_mapping:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return auto.from_config(config).eval()
    raise AssertionError(f"no tiny model of GPT-2 or BERT has a class for {task.auto_class}")


def _tokenizer(rows: Sequence[Mapping[str, Any]]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    found = dict.fromkeys(word for row in rows for value in row.values() for word in _words(value))
    table = {word: index for index, word in enumerate(dict.fromkeys((*_SPECIAL, *found)))}
    backend = Tokenizer(models.WordLevel(table, unk_token=_SPECIAL[1]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, unknown, first, last, mask = _SPECIAL
    made: Any = PreTrainedTokenizerFast
    return made(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unknown,
        cls_token=first,
        sep_token=last,
        mask_token=mask,
        eos_token=last,
    )


def _words(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield from value.split()
    elif isinstance(value, Mapping):
        yield from _words(list(value.values()))
    elif isinstance(value, Sequence):
        for part in value:
            yield from _words(part)
