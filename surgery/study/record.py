"""What one cell reports: the line of `results.jsonl`, named and typed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError

# Pydantic needs this one before Python 3.12, and depends on it itself.
from typing_extensions import TypedDict

from surgery.study.conditions import Conditions
from surgery.study.forgetting.along import AlongPoint, ProbeInfo, Shared
from surgery.study.predicted import StepCost

__all__ = [
    "Budget",
    "CellRecord",
    "CurvePoint",
    "Lost",
    "Majority",
    "Memory",
    "Merge",
    "MetricInfo",
    "Parameters",
    "Timing",
    "fault_of",
    "memory_total",
]


class MetricInfo(TypedDict):
    """The task's primary metric and its direction."""

    name: str
    greater_is_better: bool


class Parameters(TypedDict):
    """Trainable numbers outside and inside the head, and the size of the base model."""

    adapter: int
    head: int
    model: int


class CurvePoint(TypedDict):
    """Losses in nats after `step` optimizer steps; None where not measured or not finite.

    `tokens` were seen until then, padding not counted; `validation_metric` is the task's primary one.
    """

    step: int
    train_loss: float | None
    validation_loss: float | None
    tokens: NotRequired[int]
    validation_metric: NotRequired[float | None]


class Merge(TypedDict):
    """The round trip merge -> unmerge.

    `elements` base numbers were compared before and after, `differ` of them changed bits; merging changed a logit by at
    most `logit_change`, on logits of size at most `logit_size`, and `flips` of `rows` predictions.
    """

    elements: int
    differ: int
    logit_change: float | None
    logit_size: float | None
    flips: int
    rows: int


class Lost(TypedDict):
    """The probe's score before and after; without `probe`, a loss in nats.

    `values` of the base and `weights` are of each item of the probe, `base_norm` is |W0|, and the last of `points` is
    the run itself. Records of earlier versions hold the scores alone.
    """

    before: float | None
    after: float | None
    probe: NotRequired[ProbeInfo]
    weights: NotRequired[list[float]]
    values: NotRequired[list[float | None]]
    shared: NotRequired[Shared]
    base_norm: NotRequired[float | None]
    points: NotRequired[list[AlongPoint]]


class Memory(TypedDict):
    """Bytes by component at the peak of a training step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int


def memory_total(memory: Memory) -> int:
    """Return the bytes of all components together."""
    return memory["weights"] + memory["gradients"] + memory["optimizer"] + memory["activations"]


class Budget(TypedDict):
    """What the run was given."""

    examples: int
    tokens: int
    updates: int


class Majority(TypedDict):
    """Always answering the most frequent training class: its index, the share of each class, and what that scores."""

    label: int
    shares: list[float]
    test: dict[str, float | None]
    validation_loss: float | None


class Timing(TypedDict):
    """Seconds.

    A step is forward, backward and optimizer: the median and quartiles of its wall time without the warm-up steps, and
    the median of its CPU time, which other processes on the machine do not stretch. `device_peak` is the most bytes
    that a GPU held while training; it may differ between equal runs.
    """

    step: float | None
    step_low: float | None
    step_high: float | None
    step_cpu: float | None
    total: float
    device_peak: NotRequired[int]


class CellRecord(TypedDict):
    """One finished cell. Equal cells give equal records, `timing` and `machine` aside.

    `weights` holds what changed in each matrix (`surgery.spectra.MatrixChange`), where the study asks for it;
    `conditions` is what the audit holds arms to.
    """

    key: str
    arm: str
    phase: str
    seed: int
    learning_rate: float
    trains: bool
    plan: str
    metric: MetricInfo
    validation: dict[str, float | None]
    test: dict[str, float | None] | None
    test_reads: int
    items: dict[str, list[float | None]] | None
    curve: list[CurvePoint]
    parameters: Parameters
    checkpoint_bytes: int
    checkpoint: str
    merge: Merge | None
    forgetting: Lost | None
    memory: Memory | None
    cost: NotRequired[StepCost | None]
    budget: Budget
    hashes: dict[str, str]
    majority: Majority | None
    diverged: bool
    notes: list[str]
    versions: dict[str, str]
    timing: Timing
    machine: dict[str, str | int]
    weights: NotRequired[list[dict[str, Any]]]
    conditions: NotRequired[Conditions | None]


def fault_of(record: Mapping[str, Any]) -> str:
    """Return the first thing that makes plain JSON no record of a cell; empty if it is one.

    Keys that came later may be missing: records of earlier versions stay readable.
    """
    try:
        told = _records().validate_python(record, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    if told["phase"] not in ("tune", "final"):
        return "phase: should be tune or final"
    if told["phase"] == "tune":
        return ""
    test, items = told["test"], told["items"]
    if test is None or items is None or "loss" not in items:
        return "items: a final run has a test score and the loss of every test item"
    if len({len(values) for values in items.values()}) != 1:
        return "items: the arrays differ in length"
    return ""


@cache
def _records() -> TypeAdapter[CellRecord]:
    return TypeAdapter(CellRecord)
