"""Where the base's rows come from: a base checkpoint, or a merged one whose residue gives them back."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

import torch

from surgery.checkpoint.failures import told
from surgery.checkpoint.recast import guessed
from surgery.checkpoint.record import RESIDUE, MergedRecord, TensorRecord
from surgery.checkpoint.units import Block, Rows, Unit, blocks_of, changes_for
from surgery.checkpoint.weights import Weights
from surgery.errors import CheckpointError, DriftError
from surgery.exact import decode
from surgery.planning.checkpoint import Piece

__all__ = ["Source", "as_tensor", "dtype_of"]


def dtype_of(piece: Piece) -> torch.dtype:
    """The dtype of a tensor of the base."""
    dtype: torch.dtype = getattr(torch, piece.header.dtype)
    return dtype


def as_tensor(buffer: bytearray | memoryview, block: Block, dtype: torch.dtype) -> torch.Tensor:
    """Return the rows that `buffer` begins with: a view."""
    size = block.rows * block.columns * dtype.itemsize
    flat = torch.frombuffer(buffer, dtype=torch.uint8, count=size)
    return flat.view(dtype).view(block.rows, block.columns)


class Source:
    """A checkpoint, and what gives its base back.

    Args:
        weights: the files that are read.
        record: what its receipt says, for a merged one.
        base: the base's own files, where the record says `undo: file`.
    """

    def __init__(self, weights: Weights, record: MergedRecord | None = None, base: Weights | None = None) -> None:
        self.weights, self.record, self.base = weights, record, base
        self._residue = -1

    def __enter__(self) -> Self:
        if self.record is not None and self.record.undo in {"residue", "copy"}:
            path = self.weights.folder / RESIDUE
            try:
                self._residue = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                hint = "restore it from a copy: without it the base cannot be made again"
                raise CheckpointError("the residue is missing", str(path), hint) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._residue >= 0:
            os.close(self._residue)
            self._residue = -1

    def stored_dtype(self, piece: Piece) -> torch.dtype:
        """The dtype that a tensor has in the files that are read: the base's, or the one that it was given."""
        dtype: torch.dtype = getattr(torch, self.weights.stored[piece.header.name].dtype)
        return dtype

    def changes(self, unit: Unit) -> list[Rows]:
        """Return what is merged into a unit now."""
        if not (unit.old or unit.was_cast) or self.record is None or self.record.undo != "residue":
            return []
        return changes_for(unit, unit.old, None)

    def told_of(self, piece: Piece) -> TensorRecord | None:
        """Return what the record says of a tensor."""
        return None if self.record is None else self.record.tensors.get(piece.header.name)

    def blob(self, told_of: TensorRecord, index: int) -> bytes:
        """Return the residue of a block.

        Raises:
            CheckpointError: the residue ends before that.
        """
        if index >= len(told_of.blocks):
            raise DriftError("the record has too few residues", RESIDUE)
        size, at = told_of.blocks[index], told_of.at + sum(told_of.blocks[:index])
        with told(self.weights.folder / RESIDUE):
            data = os.pread(self._residue, size, at)
        if len(data) != size:
            raise CheckpointError("the residue ends too early", str(self.weights.folder / RESIDUE))
        return data

    def restored(self, piece: Piece, block: Block, index: int, rows: torch.Tensor, changes: list[Rows]) -> torch.Tensor:
        """Return the base's rows of a block of which `rows` are in the files.

        Raises:
            CheckpointError: the residue does not fit.
        """
        record = self.told_of(piece)
        if self.record is None or record is None or record.at < 0:
            return rows
        dtype = dtype_of(piece)
        if self.base is not None:
            buffer = bytearray(rows.numel() * dtype.itemsize)
            self.base.read(self.base.headers[piece.header.name], block.offset * dtype.itemsize, memoryview(buffer))
            return as_tensor(buffer, block, dtype)
        blob = self.blob(record, index)
        if self.record.undo == "copy":
            if len(blob) != rows.numel() * dtype.itemsize:
                raise CheckpointError("a kept copy has another size", str(self.weights.folder / RESIDUE))
            return as_tensor(bytearray(blob), block, dtype)
        added = changes[block.matrix].predict(rows, block.row)
        if rows.dtype != dtype:
            rows, added = guessed(rows, added, dtype), torch.zeros_like(added)
        return decode(rows, added, blob)

    def tensors(self, units: Mapping[str, Unit]) -> Mapping[str, torch.Tensor]:
        """Return name of a unit -> its base tensor as the model stores it, read when looked up."""
        return _Tensors(self, units)


class _Tensors(Mapping[str, torch.Tensor]):
    def __init__(self, source: Source, units: Mapping[str, Unit]) -> None:
        self._source, self._units = source, units

    def __getitem__(self, name: str) -> torch.Tensor:
        unit = self._units[name]
        changes = self._source.changes(unit)
        parts = [self._piece(piece, changes) for piece in unit.pieces]
        first = unit.pieces[0]
        if not first.is_stacked:
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        numbers = sorted({piece.matrix for piece in unit.pieces})
        return torch.stack(
            [
                torch.cat([part for part, piece in zip(parts, unit.pieces, strict=True) if piece.matrix == number])
                for number in numbers
            ]
        )

    def _piece(self, piece: Piece, changes: list[Rows]) -> torch.Tensor:
        dtype, read = self._source.stored_dtype(piece), self._source.weights
        buffer = bytearray(math.prod(piece.header.shape) * dtype.itemsize)
        read.read(piece.header, 0, memoryview(buffer))
        if not buffer:
            return torch.empty(piece.header.shape, dtype=dtype_of(piece))
        stored = torch.frombuffer(buffer, dtype=torch.uint8).view(dtype)
        whole = stored if dtype == dtype_of(piece) else torch.empty(stored.shape, dtype=dtype_of(piece))
        for index, block in enumerate(blocks_of(piece)):
            part = slice(block.offset, block.offset + block.rows * block.columns)
            rows = stored[part].view(block.rows, block.columns)
            whole[part].view(rows.shape).copy_(self._source.restored(piece, block, index, rows, changes))
        return whole.view(piece.header.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)
