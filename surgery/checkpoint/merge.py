"""Merging adapters into a checkpoint, and taking them out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from surgery.checkpoint.foretold import Foretold
from surgery.checkpoint.opening import load, opened
from surgery.checkpoint.receipt import read_receipt
from surgery.checkpoint.record import ADAPTER_NAME, KEY, MergedRecord
from surgery.checkpoint.report import CheckpointReport
from surgery.checkpoint.saved import SavedAdapter
from surgery.checkpoint.shards import Request, Shards, refuse_twice
from surgery.checkpoint.source import Source
from surgery.checkpoint.stream import Tell
from surgery.checkpoint.transaction import Transaction
from surgery.checkpoint.verify import verify_checkpoint
from surgery.checkpoint.work import Manner, Work
from surgery.engine import Scheduler
from surgery.errors import StateError, nearest
from surgery.exact import check_machine
from surgery.registry import Registry, load_registry

__all__ = ["merge_checkpoint", "plan_merge", "unmerge_checkpoint"]

_UNDO = ("residue", "file", "copy", "none")
_DTYPES = ("bfloat16", "float16", "float32")


def merge_checkpoint(  # noqa: PLR0913 - everything after the star is optional or named
    base: str | Path,
    adapters: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path | None = None,
    *,
    in_place: bool = False,
    undo: str = "residue",
    dtype: str | None = None,
    jobs: int | None = None,
    fast: bool = False,
    weights: Mapping[str, float] | None = None,
    registry: Registry | None = None,
    progress: Tell | None = None,
    announce: Callable[[Foretold], None] | None = None,
    engine: Scheduler | None = None,
) -> CheckpointReport:
    """Merge saved adapters into a checkpoint folder without building the model: into a new folder, or in place.

    Every weight becomes round_once(W + all adapters). Memory holds a few blocks of rows for each thread, and one
    parameter at a time where an adapter is not said by factors. Headers, untouched tensors and the files beside the
    weights are copied byte for byte. The result appears complete or not at all; the same merge again changes nothing,
    and compares what is there with its receipt, and the base with what it was.

    Args:
        base: a folder with safetensors files; a merged one gets the adapters beside those that it has.
        adapters: one folder or several, or name -> folder; names are those of the folders otherwise.
        out: a new folder.
        in_place: replace the files of `base` that change, instead: they are written beside the old ones, which needs
            as much space, and take their places in one commit. Links, as in the cache of a hub, are refused.
        undo: what is kept to take the adapters out again, bit for bit: `residue` (what merged weights and adapters do
            not tell, some thousandths of the weights), `file` (nothing: the base must stay where it is), `copy` (the
            changed weights), or `none`.
        dtype: `bfloat16`, `float16` or `float32`: all floating tensors of 16 bits and more are written in it, targeted
            or not, rounded once, and `config.json` says so. By default each keeps its own. Where the new dtype does
            not hold all numbers of the old one, `undo` must be `copy`, `file` or `none`.
        jobs: threads; by default up to four.
        fast: round sums from one slice: as reproducible, and seldom the other neighbour (`surgery.exact`).
        weights: name of an adapter -> factor of what it adds.
        registry: the installed plugins; None loads them.
        progress: told bytes done, bytes in all, and the file.
        announce: told what will be read, written and changed, before anything is.
        engine: where shards are merged, each a job of its own, such as `surgery.engine.LocalPool(4)`; None merges in
            threads of this process. Finished shards outlive an interruption, and the same merge goes on with them.

    Raises:
        CheckpointError: the base, an adapter or the output is damaged, or they do not belong together.
        StateError: an adapter is merged twice, holds NaN or inf, or would make a weight overflow; or neither `out` nor
            `in_place` is given, or both are.
        DriftError: a merged base, the result that is there already, or an adapter meanwhile was changed.
        DiskError: the disk is full or refuses. In all cases nothing was changed.
    """
    target = _target(out, in_place=in_place)
    merging = _Merging.of(base, adapters, undo, dtype, jobs, fast, weights, registry)

    def work(source: Source, old: list[SavedAdapter]) -> Work:
        return merging.work(source, old, progress, announce, engine)

    if target is not None:
        with opened(Path(base), merging.registry) as (source, old):
            return work(source, old).into(target)
    asked = [[one.name, one.format, one.factor, one.digest] for one in sorted(merging.new, key=lambda one: one.name)]
    return _in_place(Path(base), ["merge", asked, undo, fast, dtype], work, merging.registry, jobs)


def plan_merge(  # noqa: PLR0913 - as `merge_checkpoint`
    base: str | Path,
    adapters: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    *,
    in_place: bool = False,
    undo: str = "residue",
    dtype: str | None = None,
    jobs: int | None = None,
    weights: Mapping[str, float] | None = None,
    registry: Registry | None = None,
) -> Foretold:
    """Say what `merge_checkpoint` would read, write and change, from headers and adapters alone; nothing is written.

    Arguments and errors are those of `merge_checkpoint`. The values of the base's weights are not read, so what only
    they tell (another base of the same shapes, an overflow) is found by the merge.
    """
    merging = _Merging.of(base, adapters, undo, dtype, jobs, False, weights, registry)
    with opened(Path(base), merging.registry) as (source, old):
        return merging.work(source, old).foretold(in_place=in_place)


@dataclass(frozen=True)
class _Merging:
    """What is to be merged into what; its fields are the arguments of `merge_checkpoint`, looked through."""

    base: Path
    named: Mapping[str, Path]
    new: Sequence[SavedAdapter]
    undo: str
    dtype: str | None
    jobs: int | None
    fast: bool
    factors: Mapping[str, float]
    registry: Registry

    @classmethod
    def of(  # noqa: PLR0913 - the arguments of two public functions
        cls,
        base: str | Path,
        adapters: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
        undo: str,
        dtype: str | None,
        jobs: int | None,
        fast: bool,
        weights: Mapping[str, float] | None,
        registry: Registry | None,
    ) -> Self:
        if undo not in _UNDO:
            raise StateError(f"undo={undo!r} is unknown", hint=nearest(undo, _UNDO))
        if dtype is not None and dtype not in _DTYPES:
            raise StateError(f"dtype={dtype!r} is unknown", hint=nearest(dtype, _DTYPES))
        registry = registry or load_registry()
        named = _named(adapters)
        factors = dict(weights or {})
        unknown = sorted(set(factors) - set(named))
        if unknown:
            what = f"a weight is given for {unknown[0]!r}, which is not merged"
            raise StateError(what, hint=nearest(unknown[0], named))
        check_machine()
        new = [load(folder, name, factors.get(name, 1.0), registry) for name, folder in named.items()]
        return cls(Path(base), named, new, undo, dtype, jobs, fast, factors, registry)

    def work(
        self,
        source: Source,
        old: list[SavedAdapter],
        progress: Tell | None = None,
        announce: Callable[[Foretold], None] | None = None,
        engine: Scheduler | None = None,
    ) -> Work:
        refuse_twice(old, self.new)
        for one in self.new:
            one.fit(source.weights)
        kept = source.record.dtype if source.record is not None else ""
        dtype = kept if self.dtype is None else self.dtype
        request = Request(
            self.base.resolve(), self.named, self.factors, self.undo, self.fast, dtype, self.registry
        )  # fmt: skip
        shards = None if engine is None else Shards(engine, request)
        manner = Manner(self.undo, self.fast, dtype, self.jobs, progress, announce, shards)
        return Work(source, old, [*old, *self.new], manner)


def unmerge_checkpoint(  # noqa: PLR0913 - everything after the star is optional or named
    merged: str | Path,
    out: str | Path | None = None,
    *,
    in_place: bool = False,
    adapters: Sequence[str] = (),
    jobs: int | None = None,
    registry: Registry | None = None,
    progress: Tell | None = None,
    announce: Callable[[Foretold], None] | None = None,
) -> CheckpointReport:
    """Take adapters (all, without names) out of a merged checkpoint, bit for bit: into a new folder, or in place.

    Merged weights, adapters, residue and the resulting base are checked by sha256 before anything appears. Where
    adapters remain, it holds round_once(W + what remains), as if only they had been merged. In place, what was kept in
    `surgery/` goes too, and the receipt stays, which then tells the base's bits.

    Raises:
        StateError: the folder is not merged, an adapter of that name is not in it, or it was merged with undo="none".
        DriftError: merged weights, an adapter, the residue or a file that went along were changed.
        CheckpointError, DiskError: as `merge_checkpoint`. In all cases nothing was changed.
    """
    target = _target(out, in_place=in_place)
    registry = registry or load_registry()
    check_machine()

    def work(source: Source, old: list[SavedAdapter]) -> Work:
        if source.record is None:
            what = "the checkpoint is not merged: it has no receipt of a merge"
            raise StateError(what, str(merged), "name a folder that `surgery merge` wrote")
        names = {one.name for one in old}
        for name in adapters:
            if name not in names:
                raise StateError(f"{name!r} is not merged here", str(merged), nearest(name, names))
        rest = [one for one in old if adapters and one.name not in adapters]
        was = source.record
        return Work(source, old, rest, Manner(was.undo, was.fast, was.dtype, jobs, progress, announce))

    if target is not None:
        with opened(Path(merged), registry) as (source, old):
            return work(source, old).into(target)
    return _in_place(Path(merged), ["unmerge", sorted(adapters)], work, registry, jobs)


def _target(out: str | Path | None, *, in_place: bool) -> Path | None:
    if in_place and out is not None:
        raise StateError("a result goes to a new folder or in place, not to both", str(out), "leave one of them out")
    if not in_place and out is None:
        raise StateError("nothing says where the result goes", hint="name a new folder (-o OUT), or say --in-place")
    return None if out is None else Path(out)


def _in_place(
    folder: Path,
    request: Sequence[object],
    work: Callable[[Source, list[SavedAdapter]], Work],
    registry: Registry,
    jobs: int | None,
) -> CheckpointReport:
    """Do `work` to the folder's own files, or find that the same request was the last one that changed them."""
    job = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    with Transaction(folder, "replace", job=job) as tx:
        if not tx.done:
            with opened(tx.path, registry, is_held=True) as (source, old):
                return work(source, old).within(tx)
    # The receipt says so; whoever put other files beside it since needs to know.
    verify_checkpoint(folder, jobs=jobs, registry=registry)
    receipt = read_receipt(folder) or {}
    record = MergedRecord.decode(receipt[KEY], str(folder)) if KEY in receipt else None
    names = tuple(one.name for one in record.adapters) if record is not None else ()
    return CheckpointReport(folder, was_done=True, adapters=names, undo=record.undo if record is not None else "none")


def _named(adapters: str | Path | Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, Path]:
    """Return name -> folder."""
    if isinstance(adapters, Mapping):
        given = {name: Path(folder) for name, folder in adapters.items()}
    else:
        folders = [adapters] if isinstance(adapters, str | Path) else list(adapters)
        given = {}
        for folder in map(Path, folders):
            own = folder.resolve()
            # `surgery train` calls every adapter's folder so.
            name = own.parent.name if own.name == "adapter" else own.name
            if name in given:
                what = f"two adapters are called {name!r}"
                raise StateError(what, str(folder), "give them names: NAME=FOLDER, or {name: folder}")
            given[name] = folder
    for name in given:
        if not ADAPTER_NAME.fullmatch(name):
            raise StateError(f"{name!r} cannot name an adapter", hint="use letters, digits, -, _ and ., at most 64")
    if not given:
        raise StateError("no adapter is named", hint="surgery merge BASE ADAPTER -o OUT")
    return given
