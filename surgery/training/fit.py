"""Training an operation: one call, one result."""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from surgery.errors import StateError, TrainingError
from surgery.operation import Operation
from surgery.operation.bits import checksum
from surgery.spec import TrainingSpec
from surgery.training.dropout import without_dropout
from surgery.training.evaluation import Evaluation, evaluate, logits, refuse_silent
from surgery.training.folders import check_seal, disk_errors
from surgery.training.groups import parameter_groups
from surgery.training.memory import StepCost, measure_step, optimizer_bytes, storage_bytes
from surgery.training.order import Order
from surgery.training.record import identity
from surgery.training.result import FirstBatch, FitResult, Progress, StepTimes
from surgery.training.seeds import preserved_randomness
from surgery.training.session import Session, training_device
from surgery.training.shards import Shards, local
from surgery.training.world import agree, is_sharded, join, launcher_aside, processes

if TYPE_CHECKING:
    from surgery.training.trainer import OperationTrainer

__all__ = ["Evaluation", "evaluate", "fit", "last_checkpoint", "logits", "share", "steps_of"]

_NEVER = 2**31 - 1
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def fit(  # noqa: PLR0913 - everything after the star is optional or named
    session: Session,
    operation: Operation,
    training: TrainingSpec,
    *,
    out: str | Path | None = None,
    seed: int,
    progress: Progress | None = None,
    resume: bool = False,
    evaluate_first: bool = True,
    shards: Shards | None = None,
) -> FitResult:
    """Train the adapters of `operation`, and nothing else, on the session's training split.

    Args:
        session: model, task and examples; the operation must be on this model.
        operation: what is trained; it stays on the model.
        training: how.
        out: folder for checkpoints; None writes none.
        seed: decides the order of the examples and the dropout.
        progress: told about every step (at most ten times a second).
        resume: go on from the last checkpoint in `out`, if there is one; the result is that of a run never stopped.
        evaluate_first: begin the curve with a point at step 0.
        shards: what `share` returned, where the model is computed with afterwards; made here where it is needed.

    Raises:
        TrainingError: what cannot be trained, with the reason; a full disk; processes that do not start from the same.
        KeyboardInterrupt: Ctrl-C, after the running step was finished and a checkpoint was written to `out`.
    """
    start = time.perf_counter()
    if operation.model is not session.model:
        raise TrainingError("the operation is on another model than the session's", hint="operate(session.model, ...)")
    trainable = _trainable(operation, training)
    shards = shards or share(session, operation)
    if shards is not None:
        trainable = shards.trainable()
    groups = parameter_groups(trainable, operation.trainable_sites(), training)
    with contextlib.ExitStack() as stack:
        stack.enter_context(launcher_aside())
        stack.enter_context(preserved_randomness())
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(disk_errors(folder))
        stack.enter_context(_logging_to(folder, training))
        checkpoint = last_checkpoint(folder) if resume else None
        if checkpoint is not None:
            check_seal(checkpoint)
        arguments = _arguments(session, training, folder, seed, keeps=out is not None)
        arguments.eval_on_start = evaluate_first and checkpoint is None
        order = _order(session, training, seed)
        _agree(session, operation, order)
        trainer = stack.enter_context(_trainer(session, operation, order, groups, arguments, progress, shards))
        trainer.label_smoothing = training.label_smoothing
        if not training.base_dropout:
            stack.enter_context(without_dropout(trainer.computing))
        refuse_silent(session, operation, order, training.batch_size)
        measured = _first_step(trainer, order)
        with _interruptible(trainer):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.recorder.drain(trainer._reduce)
        if shards is not None:
            shards.give_back()
        if trainer.watch.is_interrupted:
            raise KeyboardInterrupt
        return _result(trainer, trainable, order, measured, time.perf_counter() - start)


def share(session: Session, operation: Operation) -> Shards | None:
    """Share out a copy of the operated model among the processes, where accelerate was started to do that.

    Raises:
        TrainingError: it cannot be shared out; fp16.
    """
    if not is_sharded():
        return None
    if session.precision == "fp16":
        what = "fp16 is not supported where the model is shared out"
        raise TrainingError(what, "training.precision", "write precision: bf16, or fp32")
    device = training_device()
    join(device)
    return Shards(operation, device)


def steps_of(session: Session, training: TrainingSpec) -> int:
    """Return how many optimizer steps `training` makes on the session's examples."""
    if training.steps is not None:
        return training.steps
    return max(1, math.ceil((training.epochs or 1.0) * len(session.examples["train"]) / _batch(training)))


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in `folder`."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _trainable(operation: Operation, training: TrainingSpec) -> dict[str, torch.nn.Parameter]:
    try:
        trainable = operation.trainable()
    except StateError as error:
        raise TrainingError(error.what, error.where, error.hint) from error
    if not trainable:
        raise TrainingError("nothing is trainable: no adapter has a parameter", hint="see the plan: surgery plan SPEC")
    half = [name for name, parameter in trainable.items() if parameter.dtype == torch.float16]
    if training.precision == "fp16" and half:
        what = f"{half[0]!r} is kept in float16, and fp16 training needs float32 there"
        raise TrainingError(what, "model.dtype", "write dtype: float32 under model:, or precision: bf16")
    return trainable


def _batch(training: TrainingSpec) -> int:
    """Return the examples of one optimizer step, over all processes that torchrun or accelerate started."""
    return training.batch_size * training.gradient_accumulation * processes()


def _order(session: Session, training: TrainingSpec, seed: int) -> Order:
    return Order(session.examples["train"], steps_of(session, training), _batch(training), seed)


def _agree(session: Session, operation: Operation, order: Order) -> None:
    """Refuse processes that started from other data, other weights or other adapters."""
    if processes() > 1:
        sums = {name: checksum(tensor) for name, tensor in operation.trainable().items()}
        agree({**identity(session), "order": order.hash, "adapters": sums})


def _arguments(session: Session, training: TrainingSpec, folder: Path, seed: int, *, keeps: bool) -> Any:
    from transformers import TrainingArguments

    device = training_device() if is_sharded() else next(session.model.parameters()).device
    if training.precision == "fp16" and device.type == "cpu":
        raise TrainingError("fp16 training needs a GPU", "training.precision", "write precision: bf16, or fp32")
    steps = steps_of(session, training)
    try:
        arguments = TrainingArguments(
            output_dir=str(folder),
            run_name=session.spec.name,
            seed=seed % 2**32,
            max_steps=steps,
            warmup_steps=_warmup(training, steps),
            use_cpu=device.type == "cpu",
            per_device_train_batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            adam_beta1=training.beta1,
            adam_beta2=training.beta2,
            adam_epsilon=training.epsilon,
            lr_scheduler_type=_SCHEDULES[training.schedule],
            max_grad_norm=training.max_grad_norm or 0.0,
            bf16=training.precision == "bf16",
            fp16=training.precision == "fp16",
            eval_strategy="steps",
            eval_steps=training.evaluate_every or _NEVER,
            save_strategy="steps" if keeps else "no",
            save_steps=training.save_every or _NEVER,
            logging_strategy="steps" if training.log_to else "no",
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to=list(training.log_to) or "none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise TrainingError(str(error).strip().splitlines()[0], "training") from error
    # One process, one device: DataParallel would call the model's class, not the operated one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _warmup(training: TrainingSpec, steps: int) -> int:
    if training.warmup_steps is None:
        return math.ceil(steps * training.warmup)
    if training.warmup_steps >= steps:
        what = f"the learning rate would rise for {training.warmup_steps} steps, and training has {steps}"
        raise TrainingError(what, "training.warmup_steps", "train longer, or write warmup: 0.1 instead")
    return training.warmup_steps


@contextlib.contextmanager
def _trainer(  # noqa: PLR0913 - what the Trainer is made of
    session: Session,
    operation: Operation,
    order: Order,
    groups: Any,
    arguments: Any,
    progress: Progress | None,
    shards: Shards | None,
) -> Iterator[OperationTrainer]:
    """Build the Trainer, and take back what it leaves on the model."""
    from surgery.training.sharded import ShardedTrainer
    from surgery.training.trainer import OperationTrainer, plain_forward

    model: Any = session.model if shards is None else shards.model
    use_cache = getattr(model.config, "use_cache", None)
    restore_forward = plain_forward(model)
    try:
        if shards is None:
            yield OperationTrainer(session, operation, order, groups, arguments, progress)
        else:
            yield ShardedTrainer(session, operation, order, groups, arguments, progress, shards)
    except RuntimeError as error:
        if "requires" in str(error) and "installed" in str(error):
            raise TrainingError(str(error), "training.log_to", "install it, or leave it out") from error
        raise
    finally:
        restore_forward()
        if use_cache is not None:
            model.config.use_cache = use_cache
        model.zero_grad(set_to_none=True)
        model.eval()


def _first_step(trainer: OperationTrainer, order: Order) -> tuple[StepCost, FirstBatch]:
    """Measure the first batch's step, which is thrown away, and tell what was in it."""
    size = trainer.args.per_device_train_batch_size
    batch = trainer._prepare_inputs(trainer.session.collator([order[position] for position in range(size)]))
    rows, length = batch["input_ids"].shape
    mask = batch.get("attention_mask")
    padded = mask is not None and not bool(mask.all())

    def compute(inputs: Any) -> torch.Tensor:
        with trainer.accelerator.autocast():
            return cast("torch.Tensor", trainer.compute_loss(trainer.computing, dict(inputs)))

    cost = measure_step(trainer.computing, compute, batch)
    if trainer.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.args.device)  # of this run, not of those before it
    return cost, FirstBatch(rows, length, padded)


@contextlib.contextmanager
def _interruptible(trainer: OperationTrainer) -> Iterator[None]:
    from surgery.training.trainer import Interruptible

    with Interruptible(trainer.watch, trainer.args.world_size):
        yield


@contextlib.contextmanager
def _logging_to(folder: Path, training: TrainingSpec) -> Iterator[None]:
    """TensorBoard's folder is named by the environment only."""
    name = "TENSORBOARD_LOGGING_DIR"
    if "tensorboard" not in training.log_to or name in os.environ:
        yield
        return
    os.environ[name] = str(folder.parent / "tensorboard")
    try:
        yield
    finally:
        del os.environ[name]


def _result(
    trainer: OperationTrainer,
    trainable: Any,
    order: Order,
    measured: tuple[StepCost, FirstBatch],
    seconds: float,
) -> FitResult:
    cost, first_batch = measured
    model = trainer.computing
    recorder, steps = trainer.recorder, trainer.state.global_step
    memory = {
        "weights": storage_bytes((*model.parameters(), *model.buffers())),
        "gradients": sum(local(parameter).nbytes for parameter in trainable.values()),
        "optimizer": optimizer_bytes(trainer.optimizer),
        "activations": cost.activations,
    }
    if torch.cuda.is_available() and trainer.args.device.type == "cuda":
        memory["device_peak"] = torch.cuda.max_memory_allocated(trainer.args.device)
    return FitResult(
        history=tuple(recorder.curve),
        step_times=StepTimes.of(recorder.seconds, recorder.cpu_seconds),
        updates=steps,
        examples=steps * len(order) // trainer.args.max_steps,
        tokens=order.tokens()[steps],
        memory=memory,
        clip_norms=tuple(recorder.norms),
        losses=tuple(recorder.losses),
        order_hash=order.hash,
        groups=tuple(group.info() for group in trainer.groups),
        seconds=seconds,
        diverged_at=recorder.diverged_at,
        flops={"forward": cost.forward, "backward": cost.backward},
        first_batch=first_batch,
        order_prefixes=order.prefixes(),
    )
