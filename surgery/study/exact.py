"""Holding the operation to its word: every bit of the base before, and after merging and unmerging."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from surgery.operation.bits import same_bits
from surgery.study.record import Merge

if TYPE_CHECKING:
    from surgery.operation import Operation
    from surgery.training import Session

__all__ = ["Snapshot"]


class Snapshot:
    """A copy of every parameter and buffer of a plain model, kept apart from whatever the operation keeps."""

    def __init__(self, model: nn.Module) -> None:
        self._live = dict((*model.named_parameters(), *model.named_buffers()))
        self._kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._live.items()}

    @property
    def elements(self) -> int:
        """How many numbers are compared."""
        return sum(tensor.numel() for tensor in self._kept.values())

    def differing(self) -> int:
        """Return how many numbers do not have the bits they had."""
        return sum(
            int((~same_bits(kept, self._live[name].detach().to("cpu"))).sum()) for name, kept in self._kept.items()
        )

    def round_trip(self, session: Session, operation: Operation, probe: int) -> Merge:
        """Merge and unmerge, and return what that changed.

        Args:
            session: model and validation examples.
            operation: a trained operation on the session's model.
            probe: how many validation examples are looked at.
        """
        from surgery.training.fit import logits

        separate = logits(session, "validation", probe)
        operation.merge()
        merged = logits(session, "validation", probe)
        operation.unmerge()
        changes = [np.abs(a - b).max() for a, b in zip(separate, merged, strict=True)]
        flips = sum(int((a.argmax(axis=-1) != b.argmax(axis=-1)).sum()) for a, b in zip(separate, merged, strict=True))
        return Merge(
            elements=self.elements,
            differ=self.differing(),
            logit_change=_finite(float(np.max(changes))),
            logit_size=_finite(float(np.max([np.abs(array).max() for array in separate]))),
            flips=flips,
            rows=sum(array.size // array.shape[-1] for array in separate),
        )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
