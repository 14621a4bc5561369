"""Merging adapters into a checkpoint, and taking them out: one pass from a source to a set of adapters."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from surgery.checkpoint.carried import carried, copy_file
from surgery.checkpoint.consistent import consistent
from surgery.checkpoint.failures import told
from surgery.checkpoint.foretold import Foretold
from surgery.checkpoint.native import NativeAdapter
from surgery.checkpoint.peft import PeftAdapter, is_peft
from surgery.checkpoint.receipt import read_receipt
from surgery.checkpoint.record import KEY, AdapterRecord, MergedRecord, adapter_folder
from surgery.checkpoint.repeated import refuse_other_result
from surgery.checkpoint.report import CheckpointReport
from surgery.checkpoint.saved import SavedAdapter
from surgery.checkpoint.source import Source
from surgery.checkpoint.stream import Stream, Tell
from surgery.checkpoint.transaction import Transaction
from surgery.checkpoint.units import units_of
from surgery.checkpoint.verify import changed_files
from surgery.checkpoint.weights import Weights
from surgery.errors import CheckpointError, DriftError, StateError, nearest
from surgery.exact import check_machine
from surgery.operation.store import CONFIG_FILE
from surgery.registry import Registry, load_registry

__all__ = ["merge_checkpoint", "unmerge_checkpoint"]

_UNDO = ("residue", "file", "copy", "none")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def merge_checkpoint(  # noqa: PLR0913 - everything after the star is optional or named
    base: str | Path,
    adapters: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path,
    *,
    undo: str = "residue",
    jobs: int | None = None,
    fast: bool = False,
    weights: Mapping[str, float] | None = None,
    registry: Registry | None = None,
    progress: Tell | None = None,
    announce: Callable[[Foretold], None] | None = None,
) -> CheckpointReport:
    """Merge saved adapters into a checkpoint folder, into a new folder, without building the model.

    Every weight becomes round_once(W + all adapters). Memory holds a few blocks of rows for each thread, and one
    parameter at a time where an adapter is not said by factors. Headers, untouched tensors and the files beside the
    weights are copied byte for byte. The new folder appears complete or not at all; the same merge again changes
    nothing, and compares what is there with its receipt, and the base with what it was.

    Args:
        base: a folder with safetensors files; a merged one gets the adapters beside those that it has.
        adapters: one folder or several, or name -> folder; names are those of the folders otherwise.
        out: a new folder.
        undo: what is kept to take the adapters out again, bit for bit: `residue` (what merged weights and adapters do
            not tell, some thousandths of the weights), `file` (nothing: the base must stay where it is), `copy` (the
            changed weights), or `none`.
        jobs: threads; by default up to four.
        fast: round sums from one slice: as reproducible, and seldom the other neighbour (`surgery.exact`).
        weights: name of an adapter -> factor of what it adds.
        registry: the installed plugins; None loads them.
        progress: told bytes done, bytes in all, and the file.
        announce: told what will be read, written and changed, before anything is.

    Raises:
        CheckpointError: the base, an adapter or the output is damaged, or they do not belong together.
        StateError: an adapter is merged twice, holds NaN or inf, or would make a weight overflow.
        DriftError: a merged base, the result that is there already, or an adapter meanwhile was changed.
        DiskError: the disk is full or refuses. In all cases nothing was changed.
    """
    if undo not in _UNDO:
        raise StateError(f"undo={undo!r} is unknown", hint=nearest(undo, _UNDO))
    registry = registry or load_registry()
    named = _named(adapters)
    factors = dict(weights or {})
    unknown = sorted(set(factors) - set(named))
    if unknown:
        raise StateError(f"a weight is given for {unknown[0]!r}, which is not merged", hint=nearest(unknown[0], named))
    check_machine()
    with opened(Path(base), registry) as (source, old):
        new = [load(folder, name, factors.get(name, 1.0), registry) for name, folder in named.items()]
        _refuse_twice(old, new)
        for one in new:
            one.fit(source.weights)
        return _pass(
            source, old, [*old, *new], Path(out), undo=undo, jobs=jobs, fast=fast, tell=progress, registry=registry,
            announce=announce,
        )  # fmt: skip


def unmerge_checkpoint(  # noqa: PLR0913 - everything after the star is optional or named
    merged: str | Path,
    out: str | Path,
    *,
    adapters: Sequence[str] = (),
    jobs: int | None = None,
    registry: Registry | None = None,
    progress: Tell | None = None,
    announce: Callable[[Foretold], None] | None = None,
) -> CheckpointReport:
    """Take adapters (all, without names) out of a merged checkpoint, into a new folder, bit for bit.

    Merged weights, adapters, residue and the resulting base are checked by sha256 before the folder appears. Where
    adapters remain, it holds round_once(W + what remains), as if only they had been merged.

    Raises:
        StateError: the folder is not merged, an adapter of that name is not in it, or it was merged with undo="none".
        DriftError: merged weights, an adapter, the residue or a file that went along were changed.
        CheckpointError, DiskError: as `merge_checkpoint`. In all cases nothing was changed.
    """
    registry = registry or load_registry()
    check_machine()
    with opened(Path(merged), registry) as (source, old):
        if source.record is None:
            what = "the checkpoint is not merged: it has no receipt of a merge"
            raise StateError(what, str(merged), "name a folder that `surgery merge` wrote")
        names = {one.name for one in old}
        for name in adapters:
            if name not in names:
                raise StateError(f"{name!r} is not merged here", str(merged), nearest(name, names))
        rest = [one for one in old if adapters and one.name not in adapters]
        record = source.record
        return _pass(
            source,
            old,
            rest,
            Path(out),
            undo=record.undo,
            jobs=jobs,
            fast=record.fast,
            tell=progress,
            registry=registry,
            announce=announce,
        )


@contextmanager
def opened(folder: Path, registry: Registry) -> Iterator[tuple[Source, list[SavedAdapter]]]:
    """Open a checkpoint, merged or not, with the adapters that are merged in it; checked, and fitted."""
    with ExitStack() as stack:
        stack.enter_context(told(folder))  # whatever is asked of the disk below and says nothing of its own
        if not folder.is_dir():
            Weights(folder, registry)  # says what is wrong
        folder = stack.enter_context(consistent(folder)) if os.access(folder, os.W_OK) else folder
        receipt = read_receipt(folder)
        weights = stack.enter_context(Weights(folder, registry))
        if receipt is None or KEY not in receipt:
            yield stack.enter_context(Source(weights)), []
            return
        record = MergedRecord.decode(receipt[KEY], str(folder))
        _refuse_changed(folder, receipt, record, weights)
        base = None
        if record.undo == "file":
            where = Path(record.base)
            if not where.is_dir():
                hint = "put the base back there: this checkpoint was merged with --undo file"
                raise CheckpointError("the base is gone", record.base, hint)
            base = stack.enter_context(Weights(where, registry))
            if {name: head.sha256 for name, head in base.heads.items()} != dict(record.heads):
                raise DriftError("the base has other headers than when it was merged", record.base, "restore it")
        old = [load(folder / adapter_folder(one.name), one.name, one.factor, registry) for one in record.adapters]
        for one, told_of in zip(old, record.adapters, strict=True):
            if one.digest != told_of.digest:
                raise DriftError(
                    f"the adapter {one.name!r} is not the one that was merged", str(one.folder), "restore it"
                )
            one.fit(weights)
        yield stack.enter_context(Source(weights, record, base)), old


def _refuse_changed(folder: Path, receipt: Mapping[str, Any], record: MergedRecord, weights: Weights) -> None:
    """Compare all that the way back takes along with the receipt, apart from weights, which are hashed as they pass."""
    if {name: head.sha256 for name, head in weights.heads.items()} != dict(record.heads):
        hint = "restore the files from a copy, or merge into the base again"
        raise DriftError("the headers of the weight files were changed since they were merged", str(folder), hint)
    if set(record.tensors) != set(weights.headers):
        raise DriftError("the weights hold other tensors than were merged", str(folder))
    problems = changed_files(folder, receipt)
    if problems:
        raise DriftError.of(problems)


def load(folder: Path, name: str, factor: float, registry: Registry) -> SavedAdapter:
    """Read an adapter folder of either format."""
    with told(folder):
        if not (folder / CONFIG_FILE).exists() and is_peft(folder):
            return PeftAdapter(folder, name, factor)
        return NativeAdapter(folder, name, factor, registry)


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
        if not _NAME.fullmatch(name):
            raise StateError(f"{name!r} cannot name an adapter", hint="use letters, digits, -, _ and ., at most 64")
    if not given:
        raise StateError("no adapter is named", hint="surgery merge BASE ADAPTER -o OUT")
    return given


def _refuse_twice(old: Sequence[SavedAdapter], new: Sequence[SavedAdapter]) -> None:
    seen = {one.digest: one for one in old}
    names = {one.name for one in old}
    for one in new:
        if one.digest in seen:
            what = f"{one.name!r} is merged already" if seen[one.digest] in old else f"{one.name!r} is given twice"
            raise StateError(
                what, str(one.folder), "an adapter is merged once; --weights NAME=FACTOR makes it stronger"
            )
        if one.name in names:
            raise StateError(
                f"an adapter called {one.name!r} is merged already", str(one.folder), "give it a name: NAME=FOLDER"
            )
        seen[one.digest] = one


def _pass(  # noqa: PLR0913 - everything after the star is optional or named
    source: Source,
    old: Sequence[SavedAdapter],
    new: Sequence[SavedAdapter],
    out: Path,
    *,
    undo: str,
    jobs: int | None,
    fast: bool,
    tell: Tell | None,
    registry: Registry,
    announce: Callable[[Foretold], None] | None = None,
) -> CheckpointReport:
    begin = time.monotonic()
    new = sorted(new, key=lambda one: one.name)
    weights, record = source.weights, source.record
    if record is not None and record.undo == "none":
        what = "the checkpoint was merged with undo='none': nothing was kept to get the base back"
        raise StateError(what, str(weights.folder), "merge into the base again")
    heads = {name: head.sha256 for name, head in weights.heads.items()}
    origin = record.base if record is not None else str(weights.folder.resolve())
    kept = tuple(AdapterRecord(one.name, one.format, one.factor, one.digest, tuple(sorted(one.files))) for one in new)
    going = carried(weights.folder, frozenset(weights.heads))
    made = MergedRecord(undo, origin, fast, heads, kept)
    plain = CheckpointReport(
        out, adapters=tuple(one.name for one in new), undo=undo, left_out=going.left_out,
        bytes=sum(head.size for head in weights.heads.values()),
        adapter_bytes=sum(path.stat().st_size for one in new for path in one.files.values()),
    )  # fmt: skip
    units = units_of(weights, old, new)
    with Transaction(out, "new", job=_job(made, weights, going.files)) as tx:
        if tx.done:
            assert tx.receipt is not None
            refuse_other_result(source, going, tx.path, tx.receipt, registry, jobs or _threads())
            return replace(plain, was_done=True)
        if announce is not None:
            announce(Foretold.of(weights, units, jobs or _threads(), going.size))
        tx.reserve(plain.bytes + going.size)
        stream = Stream(source, units, undo=undo if new else "none", correct=not fast, tell=tell)
        stream.run(tx, jobs or _threads())
        _refuse_other_base(new, stream.based)
        going.copy(weights.folder, tx)
        for one in new:
            _keep_adapter(one, tx)
        final = MergedRecord(undo, origin, fast, heads, kept, dict(sorted(stream.records.items())))
        bases = {"tensors": {name: one.base for name, one in sorted(stream.records.items())}, "heads": heads}
        tx.commit({KEY: final.encode()} if new else {"weights": bases})
        seconds = time.monotonic() - begin
        return replace(plain, tensors=stream.reports, residue_bytes=stream.kept_bytes, seconds=seconds)


def _keep_adapter(one: SavedAdapter, tx: Transaction) -> None:
    """Copy the files that were read; its tensors were read one after the other, and must have stayed the same."""
    for name, path in one.files.items():
        with told(path):
            size = path.stat().st_size
        if copy_file(path, size, tx, f"{adapter_folder(one.name)}/{name}") != one.sums[name]:
            hint = "nothing was written; run the command again when nobody writes to the adapter"
            raise DriftError("the adapter was changed while it was merged", str(path), hint)


def _threads() -> int:
    return min(4, len(os.sched_getaffinity(0)))


def _refuse_other_base(adapters: Sequence[SavedAdapter], found: Mapping[str, str]) -> None:
    for one in adapters:
        for name, expected in one.fingerprint.items():
            if found[name] != expected:
                what = f"{name} has other values than in the base of {one.name!r}"
                hint = "this adapter was trained on another base: name that one"
                raise CheckpointError(what, str(one.folder), hint)


def _job(record: MergedRecord, weights: Weights, going: Sequence[tuple[str, int]]) -> str:
    """What is done, from what and by what, as far as it is known without reading weights (`refuse_other_result`)."""
    facts = {
        **record.encode(),
        "base": "",
        "sha256": "",
        "tensors": "",
        "sizes": {n: h.size for n, h in weights.heads.items()},
    }
    facts["carried"] = [list(one) for one in going]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=list).encode()).hexdigest()
