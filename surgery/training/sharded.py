"""The Trainer of a model that several processes share. Importing this module imports transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from surgery.operation import Operation
from surgery.training.groups import Group
from surgery.training.order import Order
from surgery.training.result import Progress
from surgery.training.session import Session
from surgery.training.shards import Shards
from surgery.training.trainer import OperationTrainer

__all__ = ["ShardedTrainer"]

_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"


class ShardedTrainer(OperationTrainer):
    """An OperationTrainer of a shared copy. Its checkpoints are those of one process: whole tensors, written once."""

    def __init__(  # noqa: PLR0913 - as the class above, and the shards
        self,
        session: Session,
        operation: Operation,
        order: Order,
        groups: Sequence[Group],
        arguments: Any,
        progress: Progress | None,
        shards: Shards,
    ) -> None:
        self._shards = shards
        super().__init__(session, operation, order, groups, arguments, progress, shards.model)
        prepare = self.accelerator.prepare_model

        def shared(model: Any, device_placement: Any = None, evaluation_mode: bool = False) -> Any:
            # It is where it should be and adds up its own gradients: "evaluation" is how accelerate says so.
            return prepare(model, device_placement=False, evaluation_mode=True)

        self.accelerator.prepare_model = shared

    def _clip_grad_norm(self, model: Any) -> Any:
        return self._shards.clip(self._trainable, self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            grad_norm = self._shards.clip(self._shards.model.parameters(), float("inf"))
        return super()._get_grad_norm(model, grad_norm)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._shards.give_back()
        if self.args.should_save:
            self._save(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.lr_scheduler is not None
        state = self._shards.optimizer_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / _OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._shards.take()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.lr_scheduler is not None
        state = torch.load(Path(checkpoint) / _OPTIMIZER, map_location="cpu", weights_only=True)
        self._shards.load_optimizer(self.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))
