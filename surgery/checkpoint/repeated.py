"""A job that was done before: whether what is there is still its result, and whether it is still the same job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.checkpoint.receipt import read_receipt
from surgery.checkpoint.record import KEY, MergedRecord
from surgery.checkpoint.source import Source
from surgery.checkpoint.transaction import Transaction
from surgery.checkpoint.verify import hashes, verify_checkpoint
from surgery.errors import CheckpointError

__all__ = ["refuse_other_job", "refuse_other_result"]


def refuse_other_job(out: Path, job: str, planned: MergedRecord) -> None:
    """Say what a folder holds, where that is the result of another merge than the `planned` one.

    Raises:
        CheckpointError: it does.
    """
    receipt = read_receipt(out) if out.is_dir() else None
    if receipt is None or KEY not in receipt or receipt["job"] == job:
        return
    held, wanted = _said(MergedRecord.decode(receipt[KEY], str(out))), _said(planned)
    what = f"the output exists, and holds another merge: {held}"
    if held == wanted:
        what = f"the output exists, and holds a merge of other files of the same names: {held}"
    raise CheckpointError(what, str(out), "choose another folder, or remove it")


def _said(record: MergedRecord) -> str:
    names = ", ".join(one.name if one.factor == 1.0 else f"{one.name}={one.factor:g}" for one in record.adapters)
    manner = f"undo {record.undo}{', fast' if record.fast else ''}{f', {record.dtype}' if record.dtype else ''}"
    return f"{names} into {record.base} ({manner})"


def refuse_other_result(source: Source, beside: Mapping[str, str], tx: Transaction, jobs: int) -> None:
    """Read the folder that the job made, and what it was made from, before it is said to be done.

    A job is named by headers, sizes and adapters, so that it is known without reading weights. Here they are read.

    Args:
        source: what the job would read now.
        beside: sha256 of the files beside the weights that it would write now.
        tx: the commit, which is done.
        jobs: threads.

    Raises:
        DriftError: what is there is not what was written.
        CheckpointError: the base has other bits, or another file beside the weights, than when the job was done.
    """
    receipt: Mapping[str, Any] = tx.receipt or {}
    out = tx.path
    verify_checkpoint(out, jobs=jobs, registry=source.weights.registry)
    hint = f"choose another folder, or remove {out}"
    for name, digest in beside.items():
        if receipt["files"].get(name, {}).get("sha256") != digest:
            what = f"{out} was made when this file was another"
            raise CheckpointError(what, str(source.weights.folder / name), hint)
    now = hashes(source.weights, jobs) if source.record is None else _bases(source.record)
    then = _bases(MergedRecord.decode(receipt[KEY], str(out))) if KEY in receipt else receipt["weights"]["tensors"]
    other = sorted(name for name in now if then.get(name) != now[name])
    if other:
        what = f"{other[0]} has other values than when {out} was made of it"
        raise CheckpointError(what, str(source.weights.folder), hint)


def _bases(record: MergedRecord) -> dict[str, str]:
    return {name: one.base for name, one in record.tensors.items()}
