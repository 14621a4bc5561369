"""What a pass over a checkpoint will read, write and hold, said before it starts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from surgery.checkpoint.units import BLOCK, Unit
from surgery.checkpoint.weights import Weights

__all__ = ["Foretold"]

_HELD = 48
"""Bytes that a thread holds for each element of a block: rows in and out, and sums in float64."""


@dataclass(frozen=True)
class Foretold:
    """What will be done.

    Attributes:
        files, tensors: of the checkpoint.
        computed: parameters that are computed; the others are copied.
        read, write: bytes.
        hold: bytes of memory, about, beside the imports; more where a parameter has to be folded as a whole.
    """

    files: int
    tensors: int
    computed: int
    read: int
    write: int
    hold: int

    @classmethod
    def of(cls, weights: Weights, units: Sequence[Unit], jobs: int, beside: int, sizes: Collection[int]) -> Self:
        """Say it of these units, with files of these `sizes` written anew and so many bytes `beside` them."""
        read = sum(head.size for head in weights.stored_heads.values()) + beside
        write = sum(sizes) + beside
        computed = sum(not unit.is_copied for unit in units)
        return cls(len(weights.heads), len(weights.headers), computed, read, write, jobs * BLOCK * _HELD)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)
