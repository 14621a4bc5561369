"""What a merge did, tensor by tensor, and what storing it in the base's dtype lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgery.exact.loops import compiled_for, unsigned
from surgery.operation import MergeRecord

__all__ = ["CheckpointReport", "Tally", "finite"]

_IN_CACHE = 1 << 16
"""Elements whose intermediate results stay in a core's own cache."""


@dataclass
class Tally:
    """Sums over the blocks of one parameter."""

    elements: int = 0
    moving: int = 0
    stuck: int = 0
    base: float = 0.0
    delta: float = 0.0
    error: float = 0.0

    @torch.no_grad()
    def add(self, old: torch.Tensor, new: torch.Tensor, delta: torch.Tensor) -> None:
        """Count a block: base, merged, and what was to be added (float64)."""
        flat = old.reshape(-1), new.reshape(-1), delta.reshape(-1)
        loops = compiled_for(old, "sums") if old.dtype == new.dtype else None
        if loops is not None:
            found = np.zeros(5)
            loops.totals(unsigned(flat[0]), unsigned(flat[1]), flat[2].numpy(), found)
            self.count(old.numel(), *found.tolist())
            return
        for start in range(0, old.numel(), _IN_CACHE):
            self._add(*(one[start : start + _IN_CACHE] for one in flat))

    def _add(self, old: torch.Tensor, new: torch.Tensor, delta: torch.Tensor) -> None:
        kind = torch.float64 if old.element_size() > 2 else torch.float32
        wide, wanted = old.to(kind), delta.to(kind)
        # A copy in any case: `new` is what will be written.
        stored = new.to(kind, copy=True).sub_(wide)
        base = float(torch.dot(wide, wide))
        if not math.isfinite(base):  # NaN or infinities of the base pass through; they are left out of the sums
            finite = torch.isfinite(wide)
            wide, wanted, stored = (torch.where(finite, one, 0) for one in (wide, wanted, stored))
            base = float(torch.dot(wide, wide))
        moving = int(torch.count_nonzero(wanted))
        stuck = old.numel() - int(torch.count_nonzero(stored))
        if stuck and moving < old.numel():
            stuck = int(((wanted != 0) & (stored == 0)).sum())
        error = stored.sub_(wanted)
        sums = (base, float(torch.dot(wanted, wanted)), float(torch.dot(error, error)))
        self.count(old.numel(), *sums, moving, stuck)

    def count(self, elements: int, base: float, delta: float, error: float, moving: float, stuck: float) -> None:
        """Add what `surgery.exact.compiled_sums.totals` says of so many elements."""
        self.elements += elements
        self.base += base
        self.delta += delta
        self.error += error
        self.moving += int(moving)
        self.stuck += int(stuck)

    def record(self, name: str) -> MergeRecord:
        """Return the record of the parameter."""
        ratio = math.sqrt(self.delta / self.base) if self.base else (0.0 if not self.delta else math.inf)
        error = math.sqrt(self.error / self.delta) if self.delta else 0.0
        return MergeRecord(name, ratio, error, self.stuck / self.moving if self.moving else 0.0, self.elements)


@dataclass(frozen=True)
class CheckpointReport:
    """What a command did to a checkpoint.

    Attributes:
        path: the folder that was written.
        was_done: whether it had been written before, so that nothing was done now.
        adapters: names of the adapters that are merged in it.
        undo: how the base can be had again.
        tensors: one record for each parameter that was changed.
        bytes: of all weights.
        residue_bytes, adapter_bytes: of what is kept for the way back.
        seconds: wall time.
        left_out: files of the source that were not carried along.
    """

    path: Path
    was_done: bool = False
    adapters: tuple[str, ...] = ()
    undo: str = "none"
    tensors: tuple[MergeRecord, ...] = ()
    bytes: int = 0
    residue_bytes: int = 0
    adapter_bytes: int = 0
    seconds: float = 0.0
    left_out: tuple[str, ...] = field(default=())

    def to_dict(self) -> Mapping[str, Any]:
        """Return JSON values; what is no finite number is null."""
        return {**asdict(self), "path": str(self.path), "tensors": [finite(one.to_dict()) for one in self.tensors]}


def finite(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table with None for what is no finite number, of which JSON knows none."""
    return {key: None if isinstance(item, float) and not math.isfinite(item) else item for key, item in table.items()}
