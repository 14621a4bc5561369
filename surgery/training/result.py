"""What training gives back: the curve, the times, the costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

__all__ = ["FirstBatch", "FitResult", "GroupInfo", "Point", "Progress", "StepTimes"]

_WARM_UP = 3


class Progress(Protocol):
    """Whoever wants to know how far a long act is. Called often; must be quick.

    One that also has a method `detail(text, is_news=False)` is told losses: just before the call that they belong to,
    and as news when an evaluation has ended.
    """

    def __call__(self, done: int, total: int, description: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the curve. `train_loss` is the mean over the steps since the point before, in nats (None at 0)."""

    step: int
    tokens: int
    train_loss: float | None
    validation_loss: float
    validation_metric: float


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the optimizer steps, evaluations and checkpoints left out.

    Attributes:
        median, p25, p75: of the wall time, without the first steps, which warm caches up.
        cpu_median: the same of the process's CPU time, which other processes on the machine do not stretch.
        seconds: wall time of every step.
    """

    median: float
    p25: float
    p75: float
    cpu_median: float
    seconds: tuple[float, ...]

    @classmethod
    def of(cls, seconds: Sequence[float], cpu_seconds: Sequence[float]) -> StepTimes:
        skipped = _WARM_UP if len(seconds) > 2 * _WARM_UP else min(1, len(seconds) - 1)
        kept, cpu = sorted(seconds[skipped:]), list(cpu_seconds[skipped:])
        if not kept:
            return cls(0.0, 0.0, 0.0, 0.0, ())
        quarters = statistics.quantiles(kept, n=4, method="inclusive") if len(kept) > 1 else [kept[0]] * 3
        return cls(quarters[1], quarters[0], quarters[2], statistics.median(cpu), tuple(seconds))


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """One group of the optimizer: how many numbers, how fast, and whether they decay."""

    name: str
    tensors: int
    parameters: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True, slots=True)
class FirstBatch:
    """Shape of the batch on which a step's cost is measured: examples, tokens of the longest, whether any is padded."""

    examples: int
    length: int
    padded: bool


@dataclass(frozen=True)
class FitResult:
    """What one training run was.

    Attributes:
        history: the validation curve, in steps.
        step_times: seconds of the steps.
        updates, examples, tokens: optimizer steps, and what they saw (padding not counted), over all processes.
        memory: bytes by component: `weights`, `gradients`, `optimizer`, `activations` (saved for the backward pass of
            the first batch, weights not counted), and `device_peak` where the device measures it.
        clip_norms: norm of all gradients before clipping, for each step.
        losses: training loss of each step, in nats.
        order_hash: sha256 of the indices of the training examples in the order they were seen.
        order_prefixes: of the first 1, 2, 4, ... of them, to compare runs of different lengths.
        groups: the optimizer's groups.
        seconds: wall time of the whole call, evaluations included; of a resumed run, of the last call.
        diverged_at: the first step whose loss is not finite; training stopped there.
        flops: `forward` and `backward`: floating-point operations of the first batch, by PyTorch's counter.
        first_batch: the batch on which `flops` and `activations` were measured.
    """

    history: tuple[Point, ...]
    step_times: StepTimes
    updates: int
    examples: int
    tokens: int
    memory: Mapping[str, int]
    clip_norms: tuple[float, ...]
    losses: tuple[float, ...]
    order_hash: str
    groups: tuple[GroupInfo, ...]
    seconds: float
    diverged_at: int | None = None
    flops: Mapping[str, int] = field(default_factory=dict)
    first_batch: FirstBatch | None = None
    order_prefixes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON; numbers that are not finite become None."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
