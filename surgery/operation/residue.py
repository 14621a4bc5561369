"""Originals as residues: what a merged weight and the adapters' factors do not tell about the pristine one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from surgery.errors import CheckpointError, DriftError
from surgery.exact import decode, encode
from surgery.operation.bits import Expected, checksum
from surgery.operation.change import Change, steps_of
from surgery.operation.fold import Link
from surgery.operation.originals import Original

__all__ = ["kept_residue"]

_AT_ONCE = 1 << 20
"""Elements of one residue."""


@dataclass(frozen=True)
class _Block:
    rows: slice
    change: Change
    blob: bytes


class _Residue(Original):
    """Copies of the factors, and residues of row blocks; the merged tensor is the other half."""

    def __init__(self, name: str, blocks: tuple[tuple[_Block, ...], ...], expected: Expected) -> None:
        self._name = name
        self._blocks = blocks
        self.checksum = self._expected = expected

    def restore(self, live: torch.Tensor) -> torch.Tensor:
        result = torch.empty(live.shape, dtype=live.dtype)
        try:
            for matrix, merged, blocks in zip(_matrices(result), _matrices(live.cpu()), self._blocks, strict=True):
                for block in blocks:
                    new = merged[block.rows]
                    matrix[block.rows] = decode(new, block.change.predict(new, block.rows.start), block.blob)
        except CheckpointError as error:
            raise DriftError(
                f"the residue of {self._name} does not fit the merged weight", hint="load the base again"
            ) from error
        if checksum(result) != self._expected.result():
            raise DriftError(f"the original of {self._name} came out wrong", hint="load the base again")
        return result.to(live.device)

    @property
    def nbytes(self) -> int:
        """Bytes of all residues."""
        return sum(len(block.blob) for blocks in self._blocks for block in blocks)


def kept_residue(
    name: str, parameter: str, pristine: torch.Tensor, merged: torch.Tensor, chain: Sequence[Link], expected: Expected
) -> Original | None:
    """Return the way back from `merged` to `pristine`, or None where adapters do more than add low-rank products.

    Every residue is decoded when it is made: one that does not give the very bits is never kept.
    """
    if pristine.dim() not in {2, 3} or not pristine.is_floating_point():
        return None
    blocks = []
    for index, (old, new) in enumerate(zip(_matrices(pristine.cpu()), _matrices(merged.cpu()), strict=True)):
        shape = (old.shape[0], old.shape[1])
        steps = steps_of(parameter, chain, index, shape)
        change = Change(steps, shape) if steps is not None else None
        if change is None or not change.is_sum:
            return None
        step = max(1, _AT_ONCE // max(1, shape[1]))
        spans = [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
        blocks.append(tuple(_block(rows, change, old, new) for rows in spans))
    return _Residue(name, tuple(blocks), expected)


def _block(rows: slice, change: Change, old: torch.Tensor, new: torch.Tensor) -> _Block:
    return _Block(rows, change, encode(old[rows], new[rows], change.predict(new[rows], rows.start)))


def _matrices(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield views of the tensor's matrices as stored: itself, or one for each expert."""
    yield from tensor.detach().unbind() if tensor.dim() == 3 else (tensor.detach(),)
