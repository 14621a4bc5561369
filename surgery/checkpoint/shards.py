"""A merge as independent jobs, one for each file of weights, whose results outlive whoever asked for them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from surgery.checkpoint.digest import sha256_of
from surgery.checkpoint.failures import told
from surgery.checkpoint.opening import load, opened
from surgery.checkpoint.receipt import read_receipt
from surgery.checkpoint.record import RESIDUE, TensorRecord
from surgery.checkpoint.report import Tally
from surgery.checkpoint.saved import SavedAdapter
from surgery.checkpoint.transaction import Transaction
from surgery.checkpoint.units import Unit
from surgery.checkpoint.work import Manner, Work
from surgery.engine import Scheduler
from surgery.errors import CheckpointError, StateError
from surgery.operation import MergeRecord
from surgery.registry import Registry

__all__ = ["Request", "Shard", "Shards", "refuse_twice"]

_BLOCK = 1 << 20
_SIDE = ".surgery-shards"


@dataclass(frozen=True)
class Request:
    """A merge, as a worker that has only the disk in common with the driver needs it. The registry is pickled by name.

    Attributes:
        base: the checkpoint, or the merged one that gets more.
        adapters: name -> folder of those that come.
        factors: name -> what its scale is multiplied by.
        undo, fast, dtype: as `surgery.checkpoint.work.Manner`.
        registry: the installed plugins.
    """

    base: Path
    adapters: Mapping[str, Path]
    factors: Mapping[str, float]
    undo: str
    fast: bool
    dtype: str
    registry: Registry


@dataclass(frozen=True)
class Shard:
    """One job: a file of the base.

    Attributes:
        name: of the file.
        writes: whether it is written anew, or only hashed.
        plan: hash of what is done to the whole checkpoint.
        place: the folder of results.
        key: what the result is found by: a hash over plan and file.
    """

    name: str
    writes: bool
    plan: str
    place: Path
    key: str

    @property
    def title(self) -> str:
        """How progress and errors call it."""
        return self.name

    @property
    def folder(self) -> Path:
        """Where the result is."""
        return self.place / self.key


class Shards:
    """Sends shards to an engine, and puts their results together.

    A result is a folder of its own that appears complete (`Transaction`), named by a hash over the plan and the shard's
    name, size, header and times: what an interrupted run has finished, the next one finds, compares with its checksums,
    and does not do again.
    """

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        self._scheduler, self._request = scheduler, request

    def run(self, work: Work, tx: Transaction, files: Collection[str], size: int) -> _Gathered:
        """Have all shards done, and stage their files in `tx`.

        Args:
            work: what is done.
            tx: the commit.
            files: names of files that are written anew.
            size: bytes that the commit takes.
        """
        place = _place(tx)
        shards = [_shard(work, name, name in files, place) for name in work.weights.heads]
        done = {shard.name: result for shard in shards if (result := _finished(shard, work)) is not None}
        there = sum(work.layout.sizes[name] for name in done if name in files)
        tx.reserve(0, beside=max(0, size - there))
        total, passed = sum(head.size for head in work.weights.heads.values()), 0
        left = [shard for shard in shards if shard.name not in done]
        for name in done:
            passed += work.weights.heads[name].size
            _tell(work, passed, total, name)
        for shard, result in self._scheduler.map(partial(_do, self._request), left):
            done[shard.name] = result
            passed += work.weights.heads[shard.name].size
            _tell(work, passed, total, shard.name)
        for shard in shards:
            if shard.writes:
                tx.adopt(shard.name, shard.folder / shard.name, work.layout.sizes[shard.name])
        return _Gathered(work, shards, done, tx)

    def forget(self, tx: Transaction) -> None:
        """Remove results: the commit holds them."""
        shutil.rmtree(_place(tx), ignore_errors=True)


def _place(tx: Transaction) -> Path:
    return tx.path / _SIDE if tx.mode == "replace" else tx.path.with_name(f".{tx.path.name}{_SIDE}")


def _shard(work: Work, name: str, writes: bool, place: Path) -> Shard:
    status = os.fstat(work.weights.fileno(name))
    facts = [work.job, name, writes, work.weights.stored_heads[name].sha256, status.st_size, status.st_mtime_ns]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return Shard(name, writes, work.job, place, key)


def _tell(work: Work, done: int, total: int, name: str) -> None:
    if work.manner.tell is not None:
        work.manner.tell(done, total, name)


def _do(request: Request, shard: Shard) -> dict[str, Any]:
    """Do one shard, in whatever process this is."""
    with opened(request.base, request.registry, is_held=True) as (source, old):
        new = [
            load(folder, name, request.factors.get(name, 1.0), request.registry)
            for name, folder in request.adapters.items()
        ]
        refuse_twice(old, new)
        for one in new:
            one.fit(source.weights)
        work = Work(source, old, [*old, *new], Manner(request.undo, request.fast, request.dtype, 1))
        if work.job != shard.plan or _shard(work, shard.name, shard.writes, shard.place) != shard:
            what = "the checkpoint or an adapter is another one than where the merge was begun"
            raise StateError(what, str(request.base), "engines need one disk, that nobody changes meanwhile")
        units = [unit for unit in work.units if any(piece.header.file.name == shard.name for piece in unit.pieces)]
        with Transaction(shard.folder, "new", job=shard.key) as tx:
            if not tx.done:
                stream = work.stream(units)
                names = {shard.name} if shard.writes else set[str]()
                stream.run(tx, 1, names, work.layout, only=shard.name)
                result = {
                    "records": {name: asdict(one) for name, one in stream.records.items()},
                    "based": stream.based,
                    "tallies": {name: asdict(one) for name, one in stream.tallies.items()},
                    "kept": stream.kept_bytes,
                }
                tx.commit({"shard": result})
                return result
    receipt = read_receipt(shard.folder) or {}
    found: dict[str, Any] = receipt["shard"]
    return found


def _finished(shard: Shard, work: Work) -> dict[str, Any] | None:
    """Return a result of an interrupted run, after comparing its bytes with its checksums; remove it if they differ."""
    try:
        receipt = read_receipt(shard.folder)
        if receipt is None:
            return None
        result: dict[str, Any] = receipt["shard"]
        if receipt["job"] == shard.key and _is_whole(shard, receipt, result, work):
            return result
    except (CheckpointError, KeyError, TypeError, OSError):
        pass
    shutil.rmtree(shard.folder, ignore_errors=True)
    return None


def _is_whole(shard: Shard, receipt: Mapping[str, Any], result: Mapping[str, Any], work: Work) -> bool:
    if RESIDUE in receipt["files"] and sha256_of(shard.folder / RESIDUE) != receipt["files"][RESIDUE]["sha256"]:
        return False
    if not shard.writes:
        return True
    path = shard.folder / shard.name
    head = work.layout.heads.get(shard.name) or work.weights.head(shard.name)
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != work.layout.sizes[shard.name] or file.read(len(head)) != head:
            return False
        for name, record in result["records"].items():
            header, digest = work.layout.headers[name], hashlib.sha256()
            file.seek(header.start)
            for at in range(header.start, header.end, _BLOCK):
                digest.update(file.read(min(_BLOCK, header.end - at)))
            if digest.hexdigest() != record["merged"]:
                return False
    return True


class _Gathered:
    """The results of all shards, as one pass over all of them would have it."""

    def __init__(
        self, work: Work, shards: Sequence[Shard], done: Mapping[str, Mapping[str, Any]], tx: Transaction
    ) -> None:
        self.records: dict[str, TensorRecord] = {}
        self.based: dict[str, str] = {}
        self._units: Sequence[Unit] = work.units
        self._tallies: dict[str, Tally] = defaultdict(Tally)
        for shard in shards:
            result = done[shard.name]
            for name, one in result["records"].items():
                self.records[name] = TensorRecord(**{**one, "blocks": tuple(one["blocks"])})
            self.based.update(result["based"])
            for name, sums in result["tallies"].items():
                own = self._tallies[name]
                for field in fields(Tally):
                    setattr(own, field.name, getattr(own, field.name) + sums[field.name])
        self.kept_bytes = sum(result["kept"] for result in done.values())
        if work.new and work.manner.undo in {"residue", "copy"}:
            self._join(shards, tx)

    def _join(self, shards: Sequence[Shard], tx: Transaction) -> None:
        """Write the residue of all shards in the order of tensors' names."""
        folders = {shard.name: shard.folder for shard in shards}
        handles: dict[str, int] = {}
        at = 0
        try:
            with tx.create(RESIDUE, self.kept_bytes, digest=True) as file:
                for name, one in sorted(self.records.items()):
                    size = sum(one.blocks)
                    if one.at < 0 or not one.blocks:
                        continue
                    if one.file not in handles:
                        with told(folders[one.file] / RESIDUE):
                            handles[one.file] = os.open(folders[one.file] / RESIDUE, os.O_RDONLY | os.O_CLOEXEC)
                    file.copy_range(handles[one.file], one.at, size, at)
                    self.records[name] = TensorRecord(one.file, one.base, one.merged, at, one.blocks)
                    at += size
        finally:
            for handle in handles.values():
                os.close(handle)

    @property
    def reports(self) -> tuple[MergeRecord, ...]:
        """One record for each parameter that was changed, in the order of the files."""
        return tuple(self._tallies[unit.name].record(unit.name) for unit in self._units if unit.name in self._tallies)


def refuse_twice(old: Sequence[SavedAdapter], new: Sequence[SavedAdapter]) -> None:
    seen = {one.digest: one for one in old}
    names = {one.name for one in old}
    for one in new:
        if one.digest in seen:
            name = seen[one.digest].name
            if seen[one.digest] in old:
                as_other = "" if name == one.name else f", as {name!r}"
                hint = f"for another weight take it out first: `surgery unmerge MERGED --adapter {name}`"
                raise StateError(f"{one.name!r} is merged already{as_other}", str(one.folder), hint)
            hint = f"give it once; --weights {name}=2 makes it stronger"
            raise StateError(f"{one.name!r} is given twice", str(one.folder), hint)
        if one.name in names:
            raise StateError(
                f"an adapter called {one.name!r} is merged already", str(one.folder), "give it a name: NAME=FOLDER"
            )
        seen[one.digest] = one
