"""What a merge did, tensor by tensor, and what storing it in the base's dtype lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from surgery.operation import MergeRecord

__all__ = ["CheckpointReport", "Tally"]


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
        kind = torch.float64 if old.element_size() > 2 else torch.float32
        wide, wanted = old.to(kind), delta.to(kind)
        if not bool(torch.isfinite(wide).all()):
            finite = torch.isfinite(wide)
            wide, wanted = torch.where(finite, wide, 0), torch.where(finite, wanted, 0)
            new = torch.where(finite, new.to(kind), 0)
        stored = new.to(kind) - wide
        moves = wanted != 0
        self.elements += old.numel()
        self.moving += int(moves.sum())
        self.stuck += int((moves & (stored == 0)).sum())
        for name, value in (("base", wide), ("delta", wanted), ("error", stored - wanted)):
            flat = value.reshape(-1)
            setattr(self, name, getattr(self, name) + float(torch.dot(flat, flat)))

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
        """Return JSON values."""
        return {**asdict(self), "path": str(self.path), "tensors": [one.to_dict() for one in self.tensors]}
