"""How two checkpoints differ: which tensors, by how much, and at which rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoint.report import finite
from surgery.checkpoint.source import as_tensor, dtype_of
from surgery.checkpoint.units import Block, blocks_of
from surgery.checkpoint.weights import Weights
from surgery.planning.checkpoint import Piece
from surgery.planning.headers import TensorHeader
from surgery.registry import Registry, load_registry

__all__ = ["Difference", "TensorDifference", "diff_checkpoints"]

_PROBES = 96
"""Directions in which a difference is looked at: effective ranks up to about half of that are told well."""
_WIDEST = 1 << 18
"""Most columns of a difference that is looked at: what is seen has as many, for each direction."""


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that differs.

    Attributes:
        name: the tensor's name.
        relative: |B - A| / |A| (Frobenius norms); of finite elements.
        changed: share of elements whose bits differ.
        effective_rank: exp of the entropy of the difference's squared singular values, as seen through a random
            projection to at most 96 directions; 0 where the difference is no matrix, is zero, has
            more than 262144 columns, or numbers whose squares float64 does not hold.
    """

    name: str
    relative: float
    changed: float
    effective_rank: float


@dataclass(frozen=True)
class Difference:
    """What differs between A and B.

    Attributes:
        tensors: those of which bits differ.
        only_a, only_b: names that one side lacks.
        reshaped: names whose dtype or shape differ.
        same: how many tensors are the same, bit for bit.
    """

    tensors: tuple[TensorDifference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    reshaped: tuple[str, ...]
    same: int

    @property
    def is_empty(self) -> bool:
        """Whether there is none."""
        return not (self.tensors or self.only_a or self.only_b or self.reshaped)

    def to_dict(self) -> Mapping[str, Any]:
        """Return JSON values; what is no finite number is null."""
        return {**asdict(self), "tensors": [finite(asdict(one)) for one in self.tensors]}


@torch.no_grad()
def diff_checkpoints(a: str | Path, b: str | Path, *, registry: Registry | None = None) -> Difference:
    """Compare two checkpoint folders tensor by tensor, by row blocks.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    registry = registry or load_registry()
    with ExitStack() as stack:
        left, right = (stack.enter_context(Weights(Path(one), registry)) for one in (a, b))
        both = sorted(set(left.headers) & set(right.headers))
        found, reshaped = [], []
        for name in both:
            one, other = left.headers[name], right.headers[name]
            if (one.dtype, one.shape) != (other.dtype, other.shape):
                reshaped.append(name)
            elif (difference := _compare(left, one, right, other)) is not None:
                found.append(difference)
        return Difference(
            tuple(found),
            tuple(sorted(set(left.headers) - set(right.headers))),
            tuple(sorted(set(right.headers) - set(left.headers))),
            tuple(reshaped),
            len(both) - len(found) - len(reshaped),
        )


def _compare(left: Weights, one: TensorHeader, right: Weights, other: TensorHeader) -> TensorDifference | None:
    piece = Piece(one)
    dtype = dtype_of(piece)
    base = delta = 0.0
    changed = elements = 0
    sketch: torch.Tensor | None = None
    generator = torch.Generator().manual_seed(0)
    for block in blocks_of(piece):
        old, new = (_rows(weights, header, block, dtype) for weights, header in ((left, one), (right, other)))
        elements += block.rows * block.columns
        differs = _bits(old) != _bits(new)
        count = int(differs.sum())
        if not count:
            wide = old.double() if old.is_floating_point() else old.to(torch.float64)
            base += float(torch.where(torch.isfinite(wide), wide, 0).square().sum())
            continue
        changed += int((differs.view(block.rows, block.columns, -1)).any(-1).sum())
        wide, step = old.double(), new.double() - old.double()
        base += float(torch.where(torch.isfinite(wide), wide, 0).square().sum())
        step = torch.where(torch.isfinite(step), step, 0)
        delta += float(step.square().sum())
        if 1 < block.columns <= _WIDEST:
            if sketch is None:
                sketch = torch.zeros(_PROBES, block.columns, dtype=torch.float64)
            sketch += torch.randn(_PROBES, block.rows, dtype=torch.float64, generator=generator) @ step
    if not changed:
        return None
    is_held = math.isfinite(delta) and math.isfinite(base)
    relative = math.sqrt(delta / base) if base and is_held else (math.inf if delta else 0.0)
    return TensorDifference(one.name, relative, changed / elements, _effective_rank(sketch))


def _rows(weights: Weights, header: TensorHeader, block: Block, dtype: torch.dtype) -> torch.Tensor:
    buffer = bytearray(block.rows * block.columns * dtype.itemsize)
    weights.read(header, block.offset * dtype.itemsize, memoryview(buffer))
    return as_tensor(buffer, block, dtype)


def _bits(rows: torch.Tensor) -> torch.Tensor:
    return rows.contiguous().view(torch.uint8)


def _effective_rank(sketch: torch.Tensor | None) -> float:
    if sketch is None or not bool(torch.isfinite(sketch.square().sum())):
        return 0.0
    weights = torch.linalg.svdvals(sketch).square()
    total = float(weights.sum())
    if not total:
        return 0.0
    shares = weights[weights > 0] / total
    return math.exp(float(-(shares * shares.log()).sum()))
