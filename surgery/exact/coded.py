"""Bodies of residues by compiled loops: what `residue` writes and reads, bit for bit, in two passes over the places."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from surgery.exact.candidates import Candidates, patterns
from surgery.exact.loops import compiled_for
from surgery.exact.scratch import scratch

__all__ = ["Strays", "coded_size", "strays_of", "write"]

Ints = npt.NDArray[Any]


class Strays(NamedTuple):
    """Elements of which a guess is wrong.

    Attributes:
        where: (m), int64, ascending: those with one candidate.
        there: how many more there are, with several.
    """

    where: Ints
    there: int


def strays_of(original: torch.Tensor, known: Candidates) -> Strays:
    """Return the strays of a block for which there are compiled loops."""
    own = patterns(original)
    loops = compiled_for(original)
    assert loops is not None
    flags, where = (scratch(name, own.shape, kind).numpy() for name, kind in (("b", torch.uint8), ("w", torch.int64)))
    count, there = loops.strays(own, known.guess, known.places, flags, where)
    return Strays(where[:count], there)


def coded_size(loops: ModuleType, own: Ints, known: Candidates, strays: Strays, is_zeros: bool) -> tuple[int, int]:
    """Return how many elements a form with candidates patches, and its bytes in all."""
    patches, codes = loops.sizes(own, known.places, known.first, known.counts, is_zeros)
    return patches + len(strays.where), (4 + own.itemsize) * (patches + len(strays.where)) + codes


def write(
    loops: ModuleType, own: Ints, known: Candidates, strays: Strays, is_zeros: bool, size: tuple[int, int]
) -> bytes:
    """Return the body of a form with candidates; `size` is what `coded_size` says of it."""
    patches, total = size
    data = np.zeros(total, np.uint8)
    ends = 4 * patches, (4 + own.itemsize) * patches
    parts = data[: ends[0]].view("<u4"), data[ends[0] : ends[1]].view(own.dtype), data[ends[1] :]
    loops.body(own, known.places, known.first, known.counts, is_zeros, strays.where, *parts)
    return data.tobytes()
