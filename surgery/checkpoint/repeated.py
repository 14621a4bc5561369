"""A job that was done before: whether what is there is still its result, and whether it is still the same job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.checkpoint.carried import Carried
from surgery.checkpoint.digest import sha256_of
from surgery.checkpoint.record import KEY, MergedRecord
from surgery.checkpoint.source import Source
from surgery.checkpoint.verify import hashes, verify_checkpoint
from surgery.errors import CheckpointError
from surgery.registry import Registry

__all__ = ["refuse_other_result"]


def refuse_other_result(
    source: Source, going: Carried, out: Path, receipt: Mapping[str, Any], registry: Registry, jobs: int
) -> None:
    """Read the folder that the job made, and what it was made from, before it is said to be done.

    A job is named by headers, sizes and adapters, so that it is known without reading weights. Here they are read.

    Raises:
        DriftError: what is there is not what was written.
        CheckpointError: the base has other bits, or another file beside the weights, than when the job was done.
    """
    verify_checkpoint(out, jobs=jobs, registry=registry)
    hint = f"choose another folder, or remove {out}"
    made = receipt["files"]
    for name, _ in going.files:
        if made.get(name, {}).get("sha256") != sha256_of(source.weights.folder / name):
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
