"""Weights through a small window: read a block, take the old out, put the new in, write it; hash all that passes."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import torch

from surgery.checkpoint.failures import told
from surgery.checkpoint.layout import Layout
from surgery.checkpoint.recast import as_wide, guessed
from surgery.checkpoint.record import RESIDUE, TensorRecord
from surgery.checkpoint.report import Tally
from surgery.checkpoint.source import Source, as_tensor
from surgery.checkpoint.transaction import Transaction
from surgery.checkpoint.units import Rows, Unit, blocks_of, changes_for, refuse_other_predictions
from surgery.checkpoint.writing import StagedFile
from surgery.errors import DriftError, StateError
from surgery.exact import encode
from surgery.operation import MergeRecord
from surgery.operation.bits import as_bytes
from surgery.operation.change import Change
from surgery.planning.checkpoint import Piece

__all__ = ["Stream", "Tell"]

Tell = Callable[[int, int, str], None]
_COPY = 1 << 22


class _StoppedError(Exception):
    """Another thread failed."""


class Stream:
    """One pass over a checkpoint's weights into the staged files of a commit.

    Args:
        source: where the base's rows come from.
        units: what is worked on; each goes to one thread, which holds some blocks at once.
        undo: what is kept of the base: `residue`, `copy`, or nothing.
        correct: round sums correctly.
        tell: told bytes done, bytes in all, and what is done.

    Attributes:
        records: name of a tensor -> what passed.
        based: name of a parameter -> sha256 of the base's, over all its tensors.
        tallies: name of a changed parameter -> sums over its elements.
        reports: one for each changed parameter.
    """

    def __init__(self, source: Source, units: Sequence[Unit], *, undo: str, correct: bool, tell: Tell | None) -> None:
        self._source, self._units, self._undo, self._correct, self._tell = source, units, undo, correct, tell
        self._bases = source.tensors({unit.name: unit for unit in units})
        self._files: dict[str, StagedFile] = {}
        self._left: Counter[str] = Counter(piece.header.file.name for unit in units for piece in unit.pieces)
        self._guard, self._finishing, self._own = threading.Lock(), threading.Lock(), threading.local()
        self._stop = threading.Event()
        self._done = 0
        self.total = sum(piece.header.end - piece.header.start for unit in units for piece in unit.pieces)
        self._spool: Any = None
        self._spooled = 0
        self._blobs: dict[str, list[tuple[int, int]]] = {}
        self.records: dict[str, TensorRecord] = {}
        self.based: dict[str, str] = {}
        self.tallies: dict[str, Tally] = {}

    @property
    def reports(self) -> tuple[MergeRecord, ...]:
        """One record for each parameter that was changed, in the order of the files."""
        return tuple(self.tallies[unit.name].record(unit.name) for unit in self._units if unit.name in self.tallies)

    @property
    def kept_bytes(self) -> int:
        """Bytes that are kept to get the base back, adapters apart."""
        return self._spooled

    def run(
        self,
        tx: Transaction,
        jobs: int,
        names: Collection[str],
        layout: Layout,
        only: str | None = None,
    ) -> None:
        """Write the weight files `names`, and the residue's, into the commit; tensors of the others are only hashed.

        With `only`, tensors of other files are read no more than the hash of a parameter that is in several needs.

        Raises:
            DriftError: what is merged, or the residue, is not what the record says.
            StateError: an adapter would make a weight overflow.
            CheckpointError, DiskError: files that end too early; a disk that refuses.
        """
        weights, self._layout, self._only = self._source.weights, layout, only
        with told(tx.path), tempfile.TemporaryFile(dir=tx.scratch) as self._spool:
            try:
                for name in sorted(names):
                    file = self._files[name] = tx.create(name, layout.sizes[name])
                    file.write_at(0, layout.heads.get(name) or weights.head(name))
                    self._finish_if_whole(name)
                self._work(jobs)
                if self._undo in {"residue", "copy"}:
                    self._keep(tx)
            finally:
                for file in self._files.values():
                    if file.is_open:
                        file.drop()

    def _work(self, jobs: int) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                futures = [pool.submit(self._safely, unit) for unit in self._units]
                try:
                    wait(futures, return_when=FIRST_EXCEPTION)
                finally:
                    self._stop.set()
                    for future in futures:
                        future.cancel()
        finally:
            torch.set_num_threads(threads)
        errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
        for error in sorted(errors, key=lambda error: isinstance(error, _StoppedError)):
            raise error

    def _safely(self, unit: Unit) -> None:
        try:
            self._process(unit)
        except BaseException:
            self._stop.set()
            raise

    def _process(self, unit: Unit) -> None:
        whole = hashlib.sha256() if len(unit.pieces) > 1 else None
        old = self._source.changes(unit)
        new: list[Rows] = []
        if unit.new or unit.cast:
            new = changes_for(unit, unit.new, self._bases)
            if self._undo == "residue":
                refuse_other_predictions(unit, unit.new, new)
        tally = Tally() if unit.new else None
        for piece in unit.pieces:
            told_of = self._source.told_of(piece)
            is_changed = told_of is not None and told_of.at >= 0
            if self._only not in {None, piece.header.file.name}:
                if whole is not None:
                    _ = self._compute(piece, old, [], None, whole) if is_changed else self._copy(piece, whole)
                continue
            record = self._compute(piece, old, new, tally, whole) if new or is_changed else self._copy(piece, whole)
            if told_of is not None:
                self._refuse_drift(piece, told_of, record)
            with self._guard:
                self.records[piece.header.name] = record
                self._left[piece.header.file.name] -= 1
            self._finish_if_whole(piece.header.file.name)
        with self._guard:
            self.based[unit.name] = whole.hexdigest() if whole else self.records[unit.pieces[0].header.name].base
            if tally is not None:
                self.tallies[unit.name] = tally

    def _refuse_drift(self, piece: Piece, told_of: TensorRecord, record: TensorRecord) -> None:
        where = f"{piece.header.file}: tensor {piece.header.name!r}"
        if record.base != told_of.base:
            what = "the base that the residue gives back is not the one that was merged"
            raise DriftError(what, where, "the weights, the residue or the record was changed; restore it from a copy")

    def _finish_if_whole(self, name: str) -> None:
        if not self._left[name] and name in self._files:
            with self._finishing:
                if self._files[name].is_open:
                    with self._files[name]:
                        pass

    def _buffer(self, name: str, size: int) -> bytearray:
        buffers: dict[str, bytearray] = self._own.__dict__.setdefault("buffers", {})
        if len(buffers.get(name, b"")) < size:
            buffers[name] = bytearray(size)
        return buffers[name]

    def _doubles(self, rows: int, columns: int) -> torch.Tensor:
        buffer = self._buffer("added", rows * columns * 8)
        return torch.frombuffer(buffer, dtype=torch.float64, count=rows * columns).view(rows, columns)

    def _copy(self, piece: Piece, whole: Any) -> TensorRecord:
        header, digest = piece.header, hashlib.sha256()
        file, offset, size = self._files.get(header.file.name), 0, header.end - header.start
        buffer, layout = self._buffer("copy", _COPY), self._layout.headers
        while offset < size:
            self._go_on(0, "")
            count = min(_COPY, size - offset)
            if file is not None:
                place, to = (one[header.name].start + offset for one in (self._source.weights.stored, layout))
                file.copy_range(self._source.weights.fileno(header.file.name), place, count, to)
            view = memoryview(buffer)[:count]
            self._source.weights.read(header, offset, view)
            digest.update(view)
            if whole is not None:
                whole.update(view)
            offset += count
            self._go_on(count, header.file.name)
        found = digest.hexdigest()
        return TensorRecord(header.file.name, found, found)

    def _compute(self, piece: Piece, old: list[Rows], new: list[Rows], tally: Tally | None, whole: Any) -> TensorRecord:
        header, dtype = piece.header, self._source.stored_dtype(piece)
        place = self._layout.headers[header.name]
        into: torch.dtype = getattr(torch, place.dtype)
        told_of = self._source.told_of(piece)
        before, base, after = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        for index, block in enumerate(blocks_of(piece)):
            self._go_on(0, "")
            size = block.rows * block.columns * dtype.itemsize
            incoming = memoryview(self._buffer("in", size))[:size]
            self._source.weights.read(header, block.offset * dtype.itemsize, incoming)
            rows = as_tensor(incoming, block, dtype)
            if told_of is not None and told_of.at >= 0:
                before.update(incoming)
                rows = self._source.restored(piece, block, index, rows, old)
            bits = as_bytes(rows)
            base.update(bits)
            if whole is not None:
                whole.update(bits)
            result = rows
            if new:
                room = memoryview(self._buffer("out", block.rows * block.columns * into.itemsize))
                result = as_tensor(room, block, into)
                try:
                    self._merge(header.name, rows, result, new[block.matrix], block.row, tally)
                except StateError as error:
                    where = f"{header.file.name}: tensor {header.name!r}, {error.where}".removesuffix(", ")
                    raise StateError(error.what, where, error.hint) from error
            bits = as_bytes(result)
            after.update(bits)
            self._put(header.file.name, place.start + block.offset * into.itemsize, bits)
            # The total is of the base's dtype; what is read may have been written in another.
            self._go_on(size * getattr(torch, header.dtype).itemsize // dtype.itemsize, header.file.name)
        if told_of is not None and told_of.at >= 0 and before.hexdigest() != told_of.merged:
            what = "the merged weights were changed since they were written"
            hint = "restore the file from a copy, or merge into the base again"
            raise DriftError(what, f"{header.file}: tensor {header.name!r}", hint)
        return TensorRecord(header.file.name, base.hexdigest(), after.hexdigest(), 0 if new else -1)

    def _merge(
        self, name: str, rows: torch.Tensor, out: torch.Tensor, change: Rows, start: int, tally: Tally | None
    ) -> None:
        """Write merged rows to `out`, count them, and keep what gives `rows` back."""
        if tally is not None and isinstance(change, Change) and out.dtype == rows.dtype:
            passed = change.passed(rows, start, correct=self._correct, out=out, with_residue=self._undo == "residue")
            if passed is not None:
                tally.count(rows.numel(), *passed.sums)
                blob: bytes | memoryview | None = passed.residue
                if self._undo == "copy":
                    blob = as_bytes(rows)
                if blob is not None:
                    self._spool_blob(name, blob)
                return
        added = self._doubles(*rows.shape)
        change.merge(rows, start, self._correct, out, added)
        if tally is not None:
            tally.add(as_wide(rows, out), out, added)
        # What is added by a sum is what is predicted of it.
        self._remember(name, rows, out, added if change.is_sum else None, change, start)

    def _put(self, name: str, offset: int, bits: memoryview) -> None:
        """Write into the file `name`, unless that one is only read."""
        file = self._files.get(name)
        if file is not None:
            file.write_at(offset, bits)

    def _remember(
        self,
        name: str,
        rows: torch.Tensor,
        result: torch.Tensor,
        predicted: torch.Tensor | None,
        change: Rows,
        start: int,
    ) -> None:
        if self._undo == "residue":
            known = change.predict(result, start) if predicted is None else predicted
            if result.dtype != rows.dtype:
                result, known = guessed(result, known, rows.dtype), torch.zeros_like(known)
            blob: bytes | memoryview = encode(rows, result, known)
        elif self._undo == "copy":
            blob = as_bytes(rows)
        else:
            return
        self._spool_blob(name, blob)

    def _spool_blob(self, name: str, blob: bytes | memoryview) -> None:
        with self._guard:
            at, self._spooled = self._spooled, self._spooled + len(blob)
            self._blobs.setdefault(name, []).append((at, len(blob)))
        view = memoryview(blob)
        while view:
            count = os.pwrite(self._spool.fileno(), view, at)
            at, view = at + count, view[count:]

    def _keep(self, tx: Transaction) -> None:
        """Write the residue in the order of tensors' names, whatever order threads came in."""
        at = 0
        with tx.create(RESIDUE, self._spooled, digest=True) as file:
            for name in sorted(self._blobs):
                begin = at
                for spooled, size in self._blobs[name]:
                    file.write_at(at, os.pread(self._spool.fileno(), size, spooled))
                    at += size
                own = self.records[name]
                sizes = tuple(size for _, size in self._blobs[name])
                self.records[name] = TensorRecord(own.file, own.base, own.merged, begin, sizes)

    def _go_on(self, count: int, what: str) -> None:
        if self._stop.is_set():
            raise _StoppedError
        if count:
            with self._guard:
                self._done += count
                if self._tell is not None:
                    self._tell(self._done, self.total, what)
