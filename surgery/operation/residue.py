"""Originals as residues: what a merged weight and the adapters' factors do not tell about the pristine one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from surgery.adapter.factors import Factors
from surgery.architecture import Site
from surgery.errors import CheckpointError, DriftError
from surgery.exact import Delta, decode, encode
from surgery.operation.bits import Expected, checksum
from surgery.operation.change import product_of
from surgery.operation.fold import Link
from surgery.operation.originals import Original

__all__ = ["kept_residue"]

_AT_ONCE = 1 << 20
"""Elements of one residue."""


@dataclass(frozen=True)
class _Block:
    rows: slice
    delta: Delta
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
                    matrix[block.rows] = decode(merged[block.rows], _added(block.delta, block.rows, live), block.blob)
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
    added = _factors(parameter, chain)
    if added is None:
        return None
    blocks = []
    for index, (old, new) in enumerate(zip(_matrices(pristine.cpu()), _matrices(merged.cpu()), strict=True)):
        shape = (old.shape[0], old.shape[1])
        delta = Delta([product_of(site, factors, index, shape) for site, factors in added], shape)
        step = max(1, _AT_ONCE // max(1, shape[1]))
        spans = [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
        blocks.append(
            tuple(_Block(rows, delta, encode(old[rows], new[rows], _added(delta, rows, old))) for rows in spans)
        )
    return _Residue(name, tuple(blocks), expected)


def _factors(parameter: str, chain: Sequence[Link]) -> list[tuple[Site, Factors]] | None:
    found = []
    for adapter, site in chain:
        factors = adapter.factors(parameter)
        if factors is None or factors.rows is not None or factors.columns is not None:
            return None
        if factors.up is None or factors.down is None:
            return None
        found.append((site, factors))
    return found


def _matrices(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield views of the tensor's matrices as stored: itself, or one for each expert."""
    yield from tensor.detach().unbind() if tensor.dim() == 3 else (tensor.detach(),)


def _added(delta: Delta, rows: slice, like: torch.Tensor) -> torch.Tensor:
    # 16 bits are too coarse to notice what the first slice leaves out.
    return delta.block(rows.start, rows.stop, correct=like.element_size() > 2)
