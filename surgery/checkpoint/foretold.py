"""What a pass over a checkpoint will read, write and hold, said before it starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
        parameters: those that are computed, in order, each with the adapters that will be in it.
        read, write: bytes.
        hold: bytes of memory, about, beside the imports; more where a parameter has to be folded as a whole.
    """

    files: int
    tensors: int
    parameters: Mapping[str, tuple[str, ...]]
    read: int
    write: int
    hold: int

    @classmethod
    def of(cls, weights: Weights, units: Sequence[Unit], jobs: int, beside: int, sizes: Collection[int]) -> Self:
        """Say it of these units, with files of these `sizes` written anew and so many bytes `beside` them."""
        read = sum(head.size for head in weights.stored_heads.values()) + beside
        write = sum(sizes) + beside
        computed = {unit.name: tuple(one.name for one in unit.new) for unit in units if not unit.is_copied}
        return cls(len(weights.heads), len(weights.headers), computed, read, write, jobs * BLOCK * _HELD)

    @property
    def computed(self) -> int:
        """How many parameters are computed; the others are copied."""
        return len(self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)
