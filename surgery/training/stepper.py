"""Single training steps outside of a run, for the clock: forward, backward, clipping, optimizer, on one batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from surgery.operation import Operation
from surgery.spec import TrainingSpec
from surgery.training.evaluation import inference
from surgery.training.groups import parameter_groups
from surgery.training.session import Session

__all__ = ["Stepper", "latencies"]

Times = tuple[float, float]
"""Seconds of the wall clock, and of the process's CPU time."""


class Stepper:
    """Steps of one operation, all on the first batch of an order; the model is left in training mode."""

    def __init__(self, session: Session, operation: Operation, training: TrainingSpec, batch: Any) -> None:
        trainable = operation.trainable()
        groups = parameter_groups(trainable, operation.trainable_sites(), training)
        self._session, self._training = session, training
        self._parameters = list(trainable.values())
        self._optimizer = torch.optim.AdamW([group.for_optimizer() for group in groups], fused=True)
        self._device = next(session.model.parameters()).device
        self._batch = {key: value.to(self._device) for key, value in batch.items()}
        session.model.train()

    def step(self) -> Times:
        """Make one step; return its times, with the device waited for."""
        _wait(self._device)
        wall, cpu = time.perf_counter(), time.process_time()
        inputs = {key: value for key, value in self._batch.items() if key != "labels"}
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        kind = kinds.get(self._training.precision)
        with torch.autocast(self._device.type, dtype=kind, enabled=kind is not None):
            logits = self._session.task.logits(self._session.model(**inputs), inputs)
            loss, units = self._session.task.losses(logits, self._batch["labels"])
        (loss.sum() / units.sum()).backward()  # type: ignore[no-untyped-call]
        if self._training.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._training.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        _wait(self._device)
        return time.perf_counter() - wall, time.process_time() - cpu


def latencies(session: Session, example: Mapping[str, Any], repeats: int) -> list[float]:
    """Return the seconds of `repeats` forward passes of one example, after one that is not counted."""
    device = next(session.model.parameters()).device
    batch = {key: value.to(device) for key, value in session.collator([example]).items() if key != "labels"}
    found = []
    with inference(session, session.model):
        for _ in range(repeats + 1):
            _wait(device)
            start = time.perf_counter()
            session.model(**batch)
            _wait(device)
            found.append(time.perf_counter() - start)
    return found[1:]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
