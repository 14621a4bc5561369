"""One pass over a checkpoint, from a set of adapters to another: into a new folder, or in place."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from surgery.checkpoint.carried import Carried, carried, copy_file
from surgery.checkpoint.digest import sha256_of
from surgery.checkpoint.failures import told
from surgery.checkpoint.foretold import Foretold
from surgery.checkpoint.layout import Layout, cast_of, recast_config, recast_index
from surgery.checkpoint.recast import holds
from surgery.checkpoint.record import KEY, ORIGINALS, RESIDUE, AdapterRecord, MergedRecord, TensorRecord, adapter_folder
from surgery.checkpoint.repeated import refuse_other_job, refuse_other_result
from surgery.checkpoint.report import CheckpointReport
from surgery.checkpoint.saved import SavedAdapter
from surgery.checkpoint.shared import refuse_link
from surgery.checkpoint.source import Source
from surgery.checkpoint.stream import Stream, Tell
from surgery.checkpoint.transaction import Transaction
from surgery.checkpoint.units import Unit, units_of
from surgery.checkpoint.weights import Weights
from surgery.engine import cores
from surgery.errors import CheckpointError, DriftError, StateError
from surgery.operation import MergeRecord

__all__ = ["Engine", "Manner", "Result", "Work"]


class Result(Protocol):
    """What passed; see `surgery.checkpoint.stream.Stream`."""

    records: dict[str, TensorRecord]
    based: dict[str, str]

    @property
    def reports(self) -> tuple[MergeRecord, ...]: ...

    @property
    def kept_bytes(self) -> int: ...


class Engine(Protocol):
    """Does the passes of single files somewhere; see `surgery.checkpoint.shards.Shards`."""

    def run(self, work: Work, tx: Transaction, files: Collection[str], size: int) -> Result: ...

    def forget(self, tx: Transaction) -> None: ...


@dataclass(frozen=True)
class Manner:
    """How a pass is made.

    Attributes:
        undo: what is kept of the base.
        fast: whether sums are rounded from one slice.
        dtype: what floating tensors of the result get; "" for their own.
        jobs: threads; by default up to four.
        tell: told bytes done, bytes in all, and the file.
        announce: told what will be done, before it is.
        engine: what shards are sent to; None does all in this process.
    """

    undo: str = "residue"
    fast: bool = False
    dtype: str = ""
    jobs: int | None = None
    tell: Tell | None = None
    announce: Callable[[Foretold], None] | None = None
    engine: Engine | None = None

    @property
    def threads(self) -> int:
        return self.jobs or min(4, cores())


@dataclass(frozen=True)
class Work:
    """What is to be done to a checkpoint.

    Args:
        source: where the base's rows come from.
        old: adapters that are merged in it.
        new: those that are to be in the result.
        manner: how.

    Raises:
        StateError: the source keeps no way back, or `undo` would rest on what is replaced.
    """

    source: Source
    old: Sequence[SavedAdapter]
    new: Sequence[SavedAdapter]
    manner: Manner
    begin: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        object.__setattr__(self, "new", sorted(self.new, key=lambda one: one.name))
        record = self.source.record
        if record is not None and record.undo == "none":
            what = "the checkpoint was merged with undo='none': nothing was kept to get the base back"
            raise StateError(what, str(self.weights.folder), "merge into the base again")
        self._refuse_lossy()

    def _refuse_lossy(self) -> None:
        """A residue says what is missing of W in W'; where W' is the coarser one, that is nearly all of W."""
        for header in self.weights.headers.values() if self.new and self.manner.undo == "residue" else ():
            into = cast_of(header, self.manner.dtype)
            if into and not holds(getattr(torch, into), getattr(torch, header.dtype)):
                what = f"a residue cannot give {header.dtype} back out of {into}, which does not hold its numbers"
                where = f"{header.file}: tensor {header.name!r}"
                raise StateError(what, where, "say --undo copy, which keeps them, or --undo none")

    @property
    def weights(self) -> Weights:
        return self.source.weights

    @cached_property
    def units(self) -> list[Unit]:
        return units_of(self.weights, self.old, self.new, self.dtype)

    @property
    def dtype(self) -> str:
        """What floating tensors of the result get; the base has its own."""
        return self.manner.dtype if self.new else ""

    @cached_property
    def layout(self) -> Layout:
        return Layout.of(self.weights, self.dtype)

    @cached_property
    def altered(self) -> dict[str, bytes]:
        """Files beside the weights that say a dtype or sizes, where these change or have changed."""
        found = {}
        for name in (_CONFIG, _INDEX) if self.layout.heads or self.weights.originals else ():
            if (self.weights.folder / name).is_file():
                data = self.weights.original(name)
                if self.layout.heads:
                    data = recast_config(data, self.dtype) if name == _CONFIG else recast_index(data, self.layout)
                found[name] = data
        return found

    @cached_property
    def originals(self) -> dict[str, bytes]:
        """What is kept of a base whose dtype is changed."""
        found = {f"{name}.head": self.weights.head(name) for name in self.layout.heads}
        if found:
            found.update({name: self.weights.original(name) for name in self.altered})
        return {f"{ORIGINALS}/{name}": data for name, data in found.items()}

    @cached_property
    def going(self) -> Carried:
        return carried(self.weights.folder, frozenset(self.weights.heads)).without(self.altered)

    @cached_property
    def planned(self) -> MergedRecord:
        """The record without its tensors."""
        record = self.source.record
        origin = record.base if record is not None else str(self.weights.folder.resolve())
        heads = {name: head.sha256 for name, head in self.weights.heads.items()}
        kept = tuple(
            AdapterRecord(one.name, one.format, one.factor, one.digest, tuple(sorted(one.files))) for one in self.new
        )
        written = {name: hashlib.sha256(head).hexdigest() for name, head in self.layout.heads.items()}
        dtype = self.dtype if written else ""
        return MergedRecord(self.manner.undo, origin, self.manner.fast, heads, kept, dtype=dtype, written=written)

    def into(self, out: Path) -> CheckpointReport:
        """Write a new folder.

        Raises:
            StateError: it would lie within the checkpoint that is read.
            CheckpointError: it exists, and holds something else.
        """
        if out.resolve().is_relative_to(self.weights.folder.resolve()) and not out.exists():
            hint = "choose a folder beside it: -o OUT"
            raise StateError("the output would lie within the checkpoint that is read", str(out), hint)
        refuse_other_job(out, self.job, self.planned)
        with Transaction(out, "new", job=self.job) as tx:
            if tx.done:
                beside = {name: sha256_of(self.weights.folder / name) for name, _ in self.going.files}
                beside |= {name: hashlib.sha256(data).hexdigest() for name, data in self.altered.items()}
                refuse_other_result(self.source, beside, tx, self.manner.threads)
                return replace(self._report(out), was_done=True)
            self._announce(frozenset(self.weights.heads), self.going.size)
            stream = self._stream(tx, self.weights.heads, self.going.size)
            self.going.copy(self.weights.folder, tx)
            self._keep(tx)
            self._commit(tx, stream, {})
        self._forget(tx)
        return self._report(out, stream)

    def within(self, tx: Transaction) -> CheckpointReport:
        """Replace those files of the source's own folder that change; `tx` holds it.

        Raises:
            CheckpointError: one of them is a link, as in the cache of a hub.
        """
        folder, record = self.weights.folder, self.source.record
        if self.new and self.manner.undo == "file" and Path(self.planned.base).resolve() == folder.resolve():
            what = "undo='file' reads the base where it is, and a merge in place replaces it"
            raise StateError(what, str(folder), "use --undo residue, or write to a new folder: -o OUT")
        files = self._replaced()
        self._announce(files, 0)
        stream = self._stream(tx, files, 0)
        beside = {name: {"size": size, "sha256": sha256_of(folder / name)} for name, size in self.going.files}
        heads = {name: {"size": head.size, "sha256": None} for name, head in self.weights.heads.items()}
        self._keep(tx)
        stay = {f"{adapter_folder(one.name)}/{name}" for one in self.new for name in one.files}
        gone = {f"{adapter_folder(one.name)}/{name}" for one in self.old for name in one.files} - stay
        if self.weights.originals is not None:
            gone |= {f"{ORIGINALS}/{path.name}" for path in self.weights.originals.iterdir()} - set(self.originals)
        if record is not None and record.undo in _KEPT and not (self.new and self.manner.undo in _KEPT):
            gone.add(RESIDUE)
        for name in sorted(gone):
            tx.remove(name)
        self._commit(tx, stream, {**beside, **heads})
        self._forget(tx)
        return self._report(folder, stream)

    def foretold(self, *, in_place: bool) -> Foretold:
        """Say what would be done, and do nothing.

        Raises:
            CheckpointError: a file that would be replaced in place is a link.
        """
        files = self._replaced() if in_place else frozenset(self.weights.heads)
        return self._foretold(files, 0 if in_place else self.going.size)

    def _replaced(self) -> frozenset[str]:
        """Files of which a tensor changes; none is a link, as in the cache of a hub."""
        files = frozenset(
            piece.header.file.name for unit in self.units if not unit.is_copied for piece in unit.pieces
        )  # fmt: skip
        for name in sorted(files):
            refuse_link(os.lstat(self.weights.folder / name), self.weights.folder / name)
        return files

    def _foretold(self, files: frozenset[str], beside: int) -> Foretold:
        sizes = [self.layout.sizes[name] for name in files]
        return Foretold.of(self.weights, self.units, self.manner.threads, beside, sizes)

    def _announce(self, files: frozenset[str], beside: int) -> None:
        if self.manner.announce is not None:
            self.manner.announce(self._foretold(files, beside))

    def _forget(self, tx: Transaction) -> None:
        if self.manner.engine is not None:
            self.manner.engine.forget(tx)

    def _stream(self, tx: Transaction, files: Collection[str], beside: int) -> Result:
        changed = sum(
            piece.header.end - piece.header.start
            for unit in self.units
            if unit.new or unit.cast
            for piece in unit.pieces
        )
        copies = changed if self.new and self.manner.undo == "copy" else 0
        size = sum(self.layout.sizes[name] for name in files) + beside + self._adapter_bytes + copies
        size += sum(map(len, (*self.altered.values(), *self.originals.values())))
        if self.manner.engine is not None:
            stream: Result = self.manner.engine.run(self, tx, frozenset(files), size)
        else:
            # Copies are collected in the order of threads, then written in order. How large a residue gets is not
            # known before; the usual one is far smaller than this.
            residue = changed // _RESIDUE if self.new and self.manner.undo == "residue" else 0
            tx.reserve(size, beside=copies + residue)
            own = self.stream(self.units, self.manner.tell)
            own.run(tx, self.manner.threads, frozenset(files), self.layout)
            stream = own
        _refuse_other_base(self.new, stream.based)
        return stream

    def stream(self, units: Sequence[Unit], tell: Tell | None = None) -> Stream:
        """A pass over some units."""
        undo = self.manner.undo if self.new else "none"
        return Stream(self.source, units, undo=undo, correct=not self.manner.fast, tell=tell)

    def _keep(self, tx: Transaction) -> None:
        """Stage the adapters, and what goes with another dtype."""
        for name, data in {**self.altered, **self.originals}.items():
            tx.write(name, data)
        for one in self.new:
            for name, path in one.files.items():
                with told(path):
                    size = path.stat().st_size
                # Tensors were read one after the other, and must have stayed the same.
                if copy_file(path, size, tx, f"{adapter_folder(one.name)}/{name}") != one.sums[name]:
                    hint = "nothing was written; run the command again when nobody writes to the adapter"
                    raise DriftError("the adapter was changed while it was merged", str(path), hint)

    def _commit(self, tx: Transaction, stream: Result, beside: Mapping[str, Any]) -> None:
        """Commit with a receipt; `beside`: files of the folder that stay, for its list."""
        records = dict(sorted(stream.records.items()))
        bases = {"tensors": {name: one.base for name, one in records.items()}, "heads": self.planned.heads}
        told = {KEY: replace(self.planned, tensors=records).encode()} if self.new else {"weights": bases}
        tx.commit({**told, "files": beside})

    @property
    def _adapter_bytes(self) -> int:
        return sum(path.stat().st_size for one in self.new for path in one.files.values())

    def _report(self, out: Path, stream: Result | None = None) -> CheckpointReport:
        plain = CheckpointReport(
            out, adapters=tuple(one.name for one in self.new), undo=self.manner.undo, left_out=self.going.left_out,
            bytes=sum(self.layout.sizes.values()), adapter_bytes=self._adapter_bytes,
        )  # fmt: skip
        if stream is None:
            return plain
        seconds = time.monotonic() - self.begin
        return replace(plain, tensors=stream.reports, residue_bytes=stream.kept_bytes, seconds=seconds)

    @cached_property
    def job(self) -> str:
        """What is done, from what and by what, as far as is known without reading weights (`refuse_other_result`)."""
        facts = {
            **self.planned.encode(),
            "base": "",
            "sha256": "",
            "tensors": "",
            "sizes": {name: head.size for name, head in self.weights.heads.items()},
        }
        facts["carried"] = [list(one) for one in self.going.files]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=list).encode()).hexdigest()


def _refuse_other_base(adapters: Sequence[SavedAdapter], found: Mapping[str, str]) -> None:
    for one in adapters:
        for name, expected in one.fingerprint.items():
            if found[name] != expected:
                what = f"{name} has other values than in the base of {one.name!r}"
                hint = "this adapter was trained on another base: name that one"
                raise CheckpointError(what, str(one.folder), hint)


_RESIDUE = 100
"""Bytes that are changed for each that is looked for on the disk for the residue."""
_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"
_KEPT = frozenset({"residue", "copy"})
"""Ways back for which something is kept in the folder."""
