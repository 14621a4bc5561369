"""What happens while the Trainer runs: losses, norms, times and the curve, in a form that survives a restart."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from surgery.training.result import Point

__all__ = ["Recorder"]

_DRAIN = 32


class Recorder:
    """Collects numbers as tensors and turns them into floats now and then, so that devices need not wait."""

    def __init__(self) -> None:
        self.curve: list[Point] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.diverged_at: int | None = None
        self._micro: list[torch.Tensor] = []
        self._pending_losses: list[torch.Tensor] = []
        self._pending_norms: list[Any] = []
        self._start = (0.0, 0.0)

    def begin_step(self) -> None:
        self._start = (time.perf_counter(), time.process_time())

    @property
    def batches(self) -> int:
        """How many batches of the running step this process has computed."""
        return len(self._micro)

    def micro_loss(self, loss: torch.Tensor) -> None:
        self._micro.append(loss)

    def norm(self, value: Any) -> None:
        self._pending_norms.append(value)

    def end_step(self) -> None:
        """Close one optimizer step; the caller has waited for the device."""
        wall, cpu = self._start
        self.seconds.append(time.perf_counter() - wall)
        self.cpu_seconds.append(time.process_time() - cpu)
        self._pending_losses.append(torch.stack(self._micro).sum())
        self._micro.clear()

    @property
    def is_full(self) -> bool:
        """Whether it is time to `drain`."""
        return len(self._pending_losses) >= _DRAIN

    def drain(self, reduce: Any) -> None:
        """Turn pending tensors into floats; `reduce` averages a tensor over all processes."""
        if not self._pending_losses:
            return
        self.losses.extend(reduce(torch.stack(self._pending_losses)).tolist())
        self.norms.extend(float(norm) for norm in self._pending_norms)
        self._pending_losses.clear()
        self._pending_norms.clear()
        if self.diverged_at is None:
            bad = (step for step, loss in enumerate(self.losses, start=1) if not math.isfinite(loss))
            self.diverged_at = next(bad, None)

    def recent_loss(self, count: int = 10) -> float | None:
        """Return the mean loss of this process's last steps; reads tensors, so ask now and then only."""
        losses = [*self.losses[-count:], *map(float, self._pending_losses[-count:])][-count:]
        return sum(losses) / len(losses) if losses else None

    def train_loss(self, step: int) -> float | None:
        """Return the mean training loss since the last point of the curve."""
        since = self.curve[-1].step if self.curve else 0
        losses = self.losses[since:step]
        return sum(losses) / len(losses) if losses else None

    def save(self, path: Path) -> None:
        state = {
            "curve": [asdict(point) for point in self.curve],
            "losses": self.losses,
            "norms": self.norms,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        path.write_text(json.dumps(state), encoding="utf-8")

    def load(self, path: Path) -> None:
        state = json.loads(path.read_text(encoding="utf-8"))
        self.curve = [Point(**point) for point in state["curve"]]
        self.losses, self.norms = state["losses"], state["norms"]
        self.seconds, self.cpu_seconds = state["seconds"], state["cpu_seconds"]
