"""A session: one model, one task, one set of examples, ready for any number of operations and runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from surgery.errors import CheckpointError, DataError, Problem, TrainingError
from surgery.planning import Plan, plan
from surgery.registry import Registry, TaskType, asked
from surgery.spec import ModelRef, Options, Spec
from surgery.training.collate import Collator, length
from surgery.training.data import DataOverride, LoadedData, load_data
from surgery.training.generation import generates, refuse_encoder_decoder, refuse_long_prompts
from surgery.training.hashes import tensors_hash, tokenizer_hash
from surgery.training.heads import draw_heads
from surgery.training.models import LoadedModel, load_model, resolve
from surgery.training.positions import most_positions
from surgery.training.table import Table
from surgery.training.tokens import known_tokens
from surgery.training.trained import refuse_untrained
from surgery.training.world import is_sharded, launcher_aside

__all__ = ["Session", "prepare", "training_device"]


@dataclass
class Session:
    """What a run needs, loaded once.

    Attributes:
        spec, registry, seed: what the session was made from.
        model: the plain pretrained model, in evaluation mode, with its new parameters drawn from the seed.
        tokenizer, task, options, labels: the task and what the training split's labels are.
        tables: split -> rows with the task's column names.
        examples: split -> encoded examples.
        plan: what the spec does to the model: `operate(session.model, session.plan)`.
        new_parameters: names of the parameters that the checkpoint does not hold.
        hashes: `base`, `head`, `tokenizer`, and `data.<split>`: sha256 of what the run starts from.
        source: folder or hub name of the model.
        notes: what was decided on the way, for the user to read.
    """

    spec: Spec
    registry: Registry
    seed: int
    model: Any
    tokenizer: Any
    task: TaskType[Any]
    options: Options
    labels: tuple[str, ...]
    tables: Mapping[str, Table]
    examples: Mapping[str, list[dict[str, Any]]]
    plan: Plan
    new_parameters: tuple[str, ...]
    hashes: dict[str, str]
    source: str
    notes: tuple[str, ...]
    collator: Collator
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def precision(self) -> str:
        """Precision of forward passes: fp32, bf16 or fp16."""
        return self.spec.training.precision if self.spec.training else "fp32"

    @property
    def metric(self) -> str:
        """Name of the primary metric."""
        return self.task.primary(self.options)[0]

    @property
    def greater_is_better(self) -> bool:
        """Direction of the primary metric."""
        return self.task.primary(self.options)[1]

    @property
    def evaluation_batch_size(self) -> int:
        training = self.spec.training
        return (training.evaluation_batch_size or training.batch_size) if training else 16

    def with_spec(self, spec: Spec, seed: int | None = None) -> Session:
        """Return this session for another spec of the same model, task and data, or for another seed.

        The model is shared, and its new parameters are drawn again when the seed differs: no operation may be active.
        Encoded examples are shared too.
        """
        for key in ("model", "task", "data"):
            if getattr(spec, key) != getattr(self.spec, key):
                raise TrainingError(f"the specs differ in {key!r}", f"spec {spec.name}", "prepare a session of its own")
        seed = spec.seed if seed is None else seed
        planned = plan(spec, self.model, registry=self.registry)
        refuse_untrained(self.new_parameters, planned, self.registry, self.model)
        hashes = dict(self.hashes)
        if seed != self.seed:
            draw_heads(self.model, self.new_parameters, seed)
            hashes["head"] = tensors_hash(self.model, only=self.new_parameters)
        batches = self.evaluation_batch_size
        other = dataclasses.replace(self, spec=spec, seed=seed, plan=planned, hashes=hashes)
        if other.evaluation_batch_size != batches:
            other.cache = {}
        return other


def prepare(
    spec: Spec,
    registry: Registry,
    *,
    seed: int | None = None,
    data: DataOverride | None = None,
    model: ModelRef | str | None = None,
    limit: Mapping[str, int] | int | None = None,
) -> Session:
    """Load data and model, encode the examples, and plan.

    Args:
        spec: the spec.
        registry: installed plugins.
        seed: decides the new parameters (and later the order and the dropout); the spec's by default.
        data: files or rows in place of the spec's.
        model: a model in place of the spec's.
        limit: most rows of every split, or of some.

    Raises:
        DataError, CheckpointError, PlanError, TrainingError: with place, cause, and what to do.
    """
    if spec.task is None:
        raise TrainingError("the spec has no task", f"spec {spec.name}", "add task: {kind: ...}")
    ref = spec.model if model is None else model
    if ref is None:
        raise TrainingError("the spec names no model", f"spec {spec.name}", "add model: NAME, or use --model")
    seed = spec.seed if seed is None else seed
    task = asked(registry.task(spec.task.kind), registry)
    options = task.options.model_validate(dict(spec.task.options))
    loaded = load_data(spec.data, task.columns, registry, override=data, limit=limit)
    labels = _labels(task, loaded, options)
    outputs = task.outputs(labels, options)
    if generates(task):
        refuse_encoder_decoder(resolve(ref if isinstance(ref, str) else ref.ref, registry))
    with launcher_aside():
        pretrained = load_model(ref, task.auto_class, registry, seed=seed, labels=labels, outputs=outputs)
    planned = plan(spec, pretrained.model, registry=registry)
    refuse_untrained(pretrained.new_parameters, planned, registry, pretrained.model)
    examples = _encode(task, loaded, pretrained.tokenizer, labels, options)
    noted = [f"{split}: {note}" for split, found in examples.items() for note in task.notes(found, options)]
    _check_lengths(pretrained.model, examples)
    _check_vocabulary(pretrained, examples)
    hashes = _hashes(pretrained, loaded)
    if not is_sharded():  # what no device holds stays in main memory; its shards go to the devices
        pretrained.model.to(training_device())
    session = Session(
        spec=spec,
        registry=registry,
        seed=seed,
        model=pretrained.model,
        tokenizer=pretrained.tokenizer,
        task=task,
        options=options,
        labels=labels,
        tables=loaded.splits,
        examples=examples,
        plan=planned,
        new_parameters=pretrained.new_parameters,
        hashes=hashes,
        source=pretrained.source,
        notes=(*loaded.notes, *pretrained.notes, *noted),
        collator=Collator(pretrained.tokenizer.pad_token_id),
    )
    if generates(task):
        refuse_long_prompts(session)
    return session


def _labels(task: TaskType[Any], loaded: LoadedData, options: Options) -> tuple[str, ...]:
    train = loaded.splits["train"]
    labels = task.labels(train, options)
    is_number = not labels and task.outputs(labels, options) is not None
    if "label" in task.columns and len(labels) < 2 and not is_number:
        what = f"the training rows hold {len(labels)} label{'' if len(labels) == 1 else 's'}; two are needed at least"
        raise DataError(what, train.origin, "is the label column the right one? see data.columns in the spec")
    return labels


def _encode(
    task: TaskType[Any], loaded: LoadedData, tokenizer: Any, labels: tuple[str, ...], options: Options
) -> dict[str, list[dict[str, Any]]]:
    problems: list[Problem] = []
    examples: dict[str, list[dict[str, Any]]] = {}
    for split, table in loaded.splits.items():
        try:
            examples[split] = task.encode(table, tokenizer, labels, options, table.where)
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError.of(problems)
    return examples


def _check_lengths(model: Any, examples: Mapping[str, list[dict[str, Any]]]) -> None:
    """Refuse texts that are longer than the model's positions: they would end in an index error deep inside."""
    most = most_positions(model)
    longest = max((length(example) for split in examples.values() for example in split), default=0)
    if most is not None and longest > most:
        what = f"the longest example has {longest} tokens, the model takes {most}"
        raise TrainingError(what, "task.max_length", f"write max_length: {most} under task:")


def _check_vocabulary(pretrained: LoadedModel, examples: Mapping[str, list[dict[str, Any]]]) -> None:
    """Refuse a tokenizer that belongs to another model."""
    rows = known_tokens(pretrained.model)
    if rows is None:
        return
    highest = max((max(example["input_ids"]) for split in examples.values() for example in split), default=0)
    if highest >= rows:
        what = f"the tokenizer gives token {highest}, the model has tokens 0 to {rows - 1}"
        raise CheckpointError(what, pretrained.source, "the tokenizer belongs to another model")


def _hashes(pretrained: LoadedModel, loaded: LoadedData) -> dict[str, str]:
    new = pretrained.new_parameters
    return {
        "base": tensors_hash(pretrained.model, without=new),
        "head": tensors_hash(pretrained.model, only=new),
        "tokenizer": tokenizer_hash(pretrained.tokenizer),
        **{f"data.{split}": digest for split, digest in loaded.hashes.items()},
    }


def training_device() -> torch.device:
    """Return where to train: this process's GPU where there is one."""
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if forced or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
