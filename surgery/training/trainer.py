"""The transformers Trainer, taught what an operation is. Importing this module imports transformers."""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from surgery.operation import Operation
from surgery.training.evaluation import evaluate
from surgery.training.folders import seal
from surgery.training.groups import Group
from surgery.training.order import Order
from surgery.training.recorder import Recorder
from surgery.training.result import Point, Progress
from surgery.training.seeds import named_seed
from surgery.training.session import Session
from surgery.training.smoothing import smoothed

__all__ = ["ADAPTER_FOLDER", "OperationTrainer"]

ADAPTER_FOLDER = "adapter"
_STATE_FILE = "recorder.json"
_STAGING = ".writing"
_PROGRESS_SECONDS = 0.1


class OperationTrainer(Trainer):
    """A Trainer whose optimizer sees an operation's tensors only, and whose checkpoints hold only them.

    The order of the examples is fixed before it starts; evaluation is the session's own.

    Attributes:
        computing: the model that computes: the session's, or the copy that several processes share.
    """

    def __init__(  # noqa: PLR0913 - what a run is made of
        self,
        session: Session,
        operation: Operation,
        order: Order,
        groups: Sequence[Group],
        arguments: TrainingArguments,
        progress: Progress | None,
        model: Any = None,
    ) -> None:
        self.session = session
        self.computing = session.model if model is None else model
        self.operation = operation
        self.groups = groups
        self.label_smoothing = 0.0
        self._trainable = [parameter for group in groups for parameter in group.parameters]
        self.recorder = Recorder()
        self.order = order
        self._tokens = order.tokens()
        self._inputs: dict[str, torch.Tensor] = {}
        self._staging = False
        self.watch = _Watch(self.recorder, progress, session.spec.name, self._reduce)
        super().__init__(
            model=self.computing,
            args=arguments,
            data_collator=session.collator,
            train_dataset=order,
            # Never read: `evaluate` below uses the session's examples. The Trainer insists on one.
            eval_dataset=order,
            compute_loss_func=self._loss,
            callbacks=[self.watch],
        )
        self.remove_callback(PrinterCallback)
        # The loss is the task's own; the model need not be told how many items the batch has.
        self.model_accepts_loss_kwargs = False

    # Training ----------------------------------------------------------------------------------------------------

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **keys: Any) -> Any:
        # The task may ask what the model was called with; `compute_loss_func` is told the outputs only.
        self._inputs = {key: value for key, value in inputs.items() if key != "labels"}
        try:
            return super().compute_loss(model, inputs, *arguments, **keys)
        finally:
            self._inputs = {}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        # -100 marks positions without a loss; of a number that is to be predicted it is a value like any other.
        counted = [
            {**batch, "labels": torch.zeros_like(batch["labels"])} if batch["labels"].is_floating_point() else batch
            for batch in batch_samples
        ]
        return super()._get_num_items_in_batch(counted, device)

    def _loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        task = self.session.task
        logits = task.logits(outputs, self._inputs)
        loss, units = task.losses(logits, labels)
        if self.label_smoothing:
            shifted = task.auto_class == "AutoModelForCausalLM"
            loss = smoothed(loss, logits, labels, self.label_smoothing, shifted=shifted)
        count = units.sum() if num_items_in_batch is None else num_items_in_batch
        return loss.sum() / count

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        several = self.args.gradient_accumulation_steps * self.args.world_size
        if several > 1:
            # What a batch drops out must not depend on who computes it: every batch of a step has a seed of its own.
            number = self.recorder.batches * self.args.world_size + self.args.process_index
            torch.manual_seed(named_seed(self.args.seed, "dropout", self.state.global_step, number))
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.recorder.micro_loss(loss)
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            # Fused: without it, full tuning would be slandered by hundreds of small kernels.
            self.optimizer = torch.optim.AdamW(
                [group.for_optimizer() for group in self.groups],
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                fused=True,
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.order)

    def _clip_grad_norm(self, model: Any) -> Any:
        if self.is_fsdp_enabled:
            return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        # Walking over all parameters of the model takes longer than clipping a small adapter.
        return self.accelerator.clip_grad_norm_(self._trainable, self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        self.recorder.norm(norm)
        return norm

    def floating_point_ops(self, inputs: Any) -> int:
        # The Trainer's estimate walks over all parameters at every step, and does not know what is frozen.
        return 0

    def _reduce(self, losses: torch.Tensor) -> torch.Tensor:
        reduced: torch.Tensor = self.accelerator.reduce(losses, reduction="mean")
        return reduced

    # Evaluation --------------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on the validation split and add a point to the curve."""
        step = self.state.global_step
        self.recorder.drain(self._reduce)
        name = self.session.metric
        result = evaluate(self.session, "validation", self.computing)
        # A metric of generated texts is measured once, at the end.
        loss, metric = result.metrics["loss"], result.metrics.get(name, math.nan)
        self.recorder.curve.append(Point(step, self._tokens[step], self.recorder.train_loss(step), loss, metric))
        is_told = name != "loss" and name in result.metrics
        told = f"validation loss {loss:.4f}" + (f", {name} {metric:.4f}" if is_told else "")
        self.watch.tell_evaluation(step, self.args.max_steps, told)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in result.metrics.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Checkpoints -------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return str(Path(folder) / _STAGING) if self._staging else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside its place and move it there: what has its name is complete."""
        root = Path(str(self.args.output_dir))
        self.recorder.drain(self._reduce)
        if self.args.should_save:
            shutil.rmtree(root / _STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:
            shutil.rmtree(root / _STAGING, ignore_errors=True)
            raise
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publish(root)
        self.accelerator.wait_for_everyone()

    def _publish(self, root: Path) -> None:
        name = f"checkpoint-{self.state.global_step}"
        seal(root / _STAGING / name)
        shutil.rmtree(root / name, ignore_errors=True)
        (root / _STAGING / name).replace(root / name)
        for old in root.glob("checkpoint-*"):
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Instead of the model: transformers would rename and split what it does not know.
        if self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            self.operation.save(folder / ADAPTER_FOLDER)
            self.recorder.save(folder / _STATE_FILE)

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.world_size == 1:  # several draw from seeds of their own, see `training_step`; one of them writes
            super()._save_rng_state(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.operation.load(folder / ADAPTER_FOLDER)
        self.recorder.load(folder / _STATE_FILE)


class _Watch(TrainerCallback):
    """Times the steps, tells the progress, and stops on Ctrl-C or when the loss is no number any more."""

    def __init__(
        self,
        recorder: Recorder,
        progress: Progress | None,
        description: str,
        reduce: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self._recorder = recorder
        self._progress = progress
        self._description = description
        self._reduce = reduce
        self._told = 0.0
        self._detail: Callable[..., None] | None = getattr(progress, "detail", None)
        self.is_interrupted = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._recorder.begin_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self._recorder.end_step()
        if self._recorder.is_full:
            self._recorder.drain(self._reduce)
        if self._recorder.diverged_at is not None:
            control.should_training_stop = True
            control.should_save = control.should_evaluate = False
        if self.is_interrupted:
            control.should_training_stop = True
            control.should_save = args.save_strategy == "steps" and self._recorder.diverged_at is None
        self._tell(state.global_step, state.max_steps)

    def _tell(self, step: int, total: int) -> None:
        now = time.monotonic()
        if self._progress is not None and (step == total or now - self._told >= _PROGRESS_SECONDS):
            self._told = now
            if self._detail is not None:
                self._detail(self._loss())
            self._progress(step, total, self._description)

    def tell_evaluation(self, step: int, total: int, told: str) -> None:
        """Tell what the validation split says after `step`, to whoever wants to hear of losses."""
        if self._progress is not None and self._detail is not None:
            self._detail(", ".join(filter(None, (self._loss(), told))), is_news=True)
            self._progress(step, total, self._description)

    def _loss(self) -> str:
        loss = self._recorder.recent_loss()
        return "" if loss is None else f"loss {loss:.4f}"


class Interruptible:
    """Let the first Ctrl-C finish the running step; the second one stops at once.

    Only in a single process and its main thread: several processes must not stop at different steps.
    """

    def __init__(self, watch: Any, processes: int) -> None:
        self._watch = watch
        self._active = processes == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self._active:
            self._before = signal.signal(signal.SIGINT, self._on_signal)

    def __exit__(self, *_: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._watch.is_interrupted = True
        signal.signal(signal.SIGINT, self._before)


def plain_forward(model: Any) -> Callable[[], None]:
    """Return what takes accelerate's mixed-precision wrapper off `model.forward` again, whatever it was before."""
    before: Mapping[str, Any] = {key: model.__dict__[key] for key in _WRAPPED if key in model.__dict__}

    def restore() -> None:
        for key in _WRAPPED:
            model.__dict__.pop(key, None)
        model.__dict__.update(before)

    return restore


_WRAPPED = ("forward", "_original_forward")
