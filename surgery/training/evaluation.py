"""Evaluation: batches sorted by length, always the same, and a number for every item in its own place."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from surgery.errors import Problem, StateError, TrainingError, nearest
from surgery.training.collate import length
from surgery.training.result import Progress
from surgery.training.world import processes, share_items, shared_batches

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
        items: per-item arrays in the order of the split's examples: `loss` (sum over the item, nats), `units`
            (predicted labels or tokens), and for labelled tasks `prediction` and `label`.
        seconds: wall time.
    """

    split: str
    metrics: Mapping[str, float]
    items: Mapping[str, np.ndarray]
    seconds: float


def evaluate(
    session: Session, split: str, model: Any = None, *, limit: int | None = None, progress: Progress | None = None
) -> Evaluation:
    """Evaluate `model` (the session's own by default) on `split`. Draws nothing, changes nothing.

    Of several processes each computes some of the batches, which are those of one process: so are the numbers.
    """
    start = time.perf_counter()
    model = session.model if model is None else model
    batches = _batches(session, split, limit)
    count = sum(len(indices) for indices, _ in batches)
    items: dict[str, np.ndarray] = {"loss": np.zeros(count), "units": np.zeros(count, dtype=np.int64)}
    if session.labels:
        items |= {"prediction": np.zeros(count, dtype=np.int64), "label": np.zeros(count, dtype=np.int64)}
    done = 0
    with inference(session, model):
        for number, is_wanted in shared_batches(len(batches)):
            indices, batch = batches[number]
            labels = batch["labels"]
            output = _forward(model, batch)
            if not is_wanted:
                continue
            loss, units = session.task.losses(output, labels.to(output.device))
            items["loss"][indices] = loss.double().cpu().numpy()
            items["units"][indices] = units.cpu().numpy()
            if session.labels:
                items["prediction"][indices] = output.argmax(dim=-1).cpu().numpy()
                items["label"][indices] = labels.numpy()
            done = min(count, done + len(indices) * processes())
            if progress is not None:
                progress(done, count, f"evaluating {split}")
    share_items(items, next(model.parameters()).device)
    return Evaluation(split, session.task.score(items), items, time.perf_counter() - start)


def logits(session: Session, split: str, limit: int | None = None, model: Any = None) -> list[np.ndarray]:
    """Return the logits of each of the first `limit` items, float32 and without padding, in the items' order."""
    model = session.model if model is None else model
    batches = _batches(session, split, limit)
    found: dict[int, np.ndarray] = {}
    with inference(session, model):
        for indices, batch in batches:
            output = _forward(model, batch).float().cpu().numpy()
            for row, index in enumerate(indices):
                tokens = length(session.examples[split][index])
                found[index] = output[row, :tokens] if output.ndim == 3 else output[row]
    return [found[index] for index in sorted(found)]


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


def _forward(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    output: torch.Tensor = model(**inputs).logits
    return output


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
