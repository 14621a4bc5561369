"""Evaluation: batches sorted by length, always the same, and what the model answers in the examples' own order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from surgery.errors import Problem, StateError, TrainingError, nearest
from surgery.training.collate import length
from surgery.training.generation import by_item, generates, generation_of, write_texts
from surgery.training.result import Progress
from surgery.training.world import gathered, processes, shared_batches

if TYPE_CHECKING:
    from surgery.operation import Operation
    from surgery.training.order import Order
    from surgery.training.session import Session

__all__ = ["Evaluation", "evaluate", "logits", "refuse_silent"]

_PROBES = 16
"""Batches after which a site that was never used counts as silent; a healthy model needs one."""

Batch = tuple[list[int], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """What evaluating one split gave.

    Attributes:
        split: which split.
        metrics: metric name -> value; `loss` is in nats.
        items: the task's per-item arrays: `loss` (sum over the item, nats), `units` (predicted labels or tokens), for
            labelled tasks `prediction` and `label`, and whatever else its metrics are made of. Where an item is one
            example, they are in the order of the split's examples. Where texts were generated, an item is a source,
            which several examples may share.
        seconds: wall time.
        texts: (source, text) of what was generated.
    """

    split: str
    metrics: Mapping[str, float]
    items: Mapping[str, np.ndarray]
    seconds: float
    texts: tuple[tuple[str, str], ...] = ()


def evaluate(
    session: Session,
    split: str,
    model: Any = None,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
    generate: bool = False,
) -> Evaluation:
    """Evaluate `model` (the session's own by default) on `split`. Draws nothing, changes nothing.

    Of several processes each computes some of the batches, which are those of one process: so are the numbers.

    With `generate`, a task that has the model write texts is scored by them, too; without, by its losses alone.

    Raises:
        PluginError: the task's items are not what its contract says.
    """
    start = time.perf_counter()
    model = session.model if model is None else model
    task = session.task
    batches = _batches(session, split, limit)
    examples = session.examples[split][:limit]
    loss, units = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
    told: dict[str, list[Any]] = {}
    with inference(session, model):
        for indices, sums, counts, columns in gathered(_parts(session, split, model, batches, progress)):
            loss[indices], units[indices] = sums, counts
            for name, values in columns.items():
                column = told.setdefault(name, [None] * len(examples))
                for index, value in zip(indices, values, strict=True):
                    column[index] = value
        answers: dict[str, list[Any]] = {"loss": loss.tolist(), "units": units.tolist(), **told}
        items = task.items(examples, answers, session.labels, session.options)
        texts: tuple[tuple[str, str], ...] = ()
        generation = generation_of(session, split, limit) if generate else None
        if generation is not None:
            written = write_texts(session, model, generation, progress, f"generating {split}")
            items = {**by_item(generation, items), **generation.measure(written)}
            texts = tuple(zip(generation.sources, written, strict=True))
    _check_items(session, items)
    metrics = task.score(items)
    # A metric of texts is known once there are some.
    wanted = {"loss"} if generates(task) and generation is None else {session.metric, "loss"}
    if missing := wanted - metrics.keys():
        what = f"score returned no {' and no '.join(map(repr, sorted(missing)))}"
        raise session.registry.failure("task", task.name, what)
    return Evaluation(split, metrics, items, time.perf_counter() - start, texts)


Part = tuple[list[int], np.ndarray, np.ndarray, Mapping[str, Any]]
"""The indices of a batch's examples, the sums of their losses, the counts, and the task's answers."""


def _parts(session: Session, split: str, model: Any, batches: Sequence[Batch], progress: Progress | None) -> list[Part]:
    """Return what the batches of this process give."""
    task, examples = session.task, session.examples[split]
    count = sum(len(indices) for indices, _ in batches)
    found: list[Part] = []
    done = 0
    for number, is_wanted in shared_batches(len(batches)):
        indices, batch = batches[number]
        output = _forward(session, model, batch)
        if not is_wanted:
            continue
        sums, counts = task.losses(output, batch["labels"].to(output.device))
        chosen = [examples[index] for index in indices]
        answers = task.answers(output, chosen, session.labels, session.options)
        found.append((indices, sums.double().cpu().numpy(), counts.cpu().numpy(), answers))
        done = min(count, done + len(indices) * processes())
        if progress is not None:
            progress(done, count, f"evaluating {split}")
    return found


def _check_items(session: Session, items: Mapping[str, np.ndarray]) -> None:
    """Refuse arrays that a study could not draw items from: it would pair one item's loss with another's answer."""
    shapes = {name: np.shape(array) for name, array in items.items()}
    if missing := {"loss", "units"} - shapes.keys():
        raise session.registry.failure("task", session.task.name, f"items returned no {min(missing)!r}")
    wrong = [f"{name} {shape}" for name, shape in shapes.items() if len(shape) != 1 or shape != shapes["loss"]]
    if wrong:
        what = f"items returned arrays of different shapes: loss {shapes['loss']}, {', '.join(wrong)}"
        raise session.registry.failure("task", session.task.name, what)


def logits(session: Session, split: str, limit: int | None = None, model: Any = None) -> list[np.ndarray]:
    """Return the logits of each of the first `limit` examples, float32 and without padding, in their order."""
    model = session.model if model is None else model
    batches = _batches(session, split, limit)
    found: dict[int, np.ndarray] = {}
    with inference(session, model):
        for indices, batch in batches:
            output = _forward(session, model, batch).float().cpu().numpy()
            padded = batch["input_ids"].shape[1]
            for row, index in enumerate(indices):
                found[index] = _unpadded(output[row], padded, length(session.examples[split][index]))
    return [found[index] for index in sorted(found)]


def _unpadded(logits: np.ndarray, padded: int, tokens: int) -> np.ndarray:
    """Return one example's logits without padding: a row for each token, a column for each, or neither."""
    if logits.ndim < 2:
        return logits
    return logits[:tokens] if len(logits) == padded else logits[..., :tokens]


def refuse_silent(session: Session, operation: Operation, examples: Order, batch_size: int) -> None:
    """Refuse adapters that the model never calls where it is evaluated: they would be trained for nothing.

    Without gradients, as evaluation is: some modules have a fast path then, which reads weights past their modules.
    Where something is silent, more batches follow: an expert may wait for its tokens.

    Raises:
        TrainingError: the silent sites, all of them.
    """
    silent: dict[str, Problem] | None = None
    device = next(session.model.parameters()).device
    with inference(session, session.model):
        for start in range(0, min(len(examples), _PROBES * batch_size), batch_size):
            chosen = [examples[index] for index in range(start, min(start + batch_size, len(examples)))]
            batch = session.collator(chosen)
            try:
                operation.probe({key: value.to(device) for key, value in batch.items() if key != "labels"})
            except StateError as error:
                found = {problem.where: problem for problem in error.problems}
                silent = {key: found[key] for key in (silent or found) if key in found}
                if silent:
                    continue
            return
    if silent:
        raise TrainingError.of(list(silent.values()))


def _batches(session: Session, split: str, limit: int | None) -> list[Batch]:
    """Return the split's batches on the CPU, made once for each session."""
    if split not in session.examples:
        raise TrainingError(f"there is no {split} split", hint=nearest(split, session.examples))
    found: list[Batch] | None = session.cache.get((split, limit))
    if found is None:
        examples = session.examples[split][:limit]
        order = sorted(range(len(examples)), key=lambda index: (length(examples[index]), index))
        size = session.evaluation_batch_size
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        found = [(chunk, session.collator([examples[index] for index in chunk])) for chunk in chunks]
        session.cache[split, limit] = found
    return found


def _forward(session: Session, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    return session.task.logits(model(**inputs), inputs)


@contextlib.contextmanager
def inference(session: Session, model: Any) -> Iterator[None]:
    was_training = model.training
    device = next(model.parameters()).device.type
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = dtypes.get(session.precision)
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device, dtype=kind, enabled=kind is not None):
            yield
    finally:
        model.train(was_training)
