"""The receipt: which job wrote a folder, what it wrote, and what else the job wants to be remembered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.checkpoint.disk import DISK, Disk
from surgery.checkpoint.failures import told
from surgery.checkpoint.journal import Move, canonical
from surgery.checkpoint.names import RECEIPT, check_name
from surgery.checkpoint.reading import read_small
from surgery.errors import CheckpointError

__all__ = ["encode_receipt", "read_receipt", "receipt_in"]

_LARGEST = 64 * 1024 * 1024
_FORMAT = 1


def encode_receipt(job: str, receipt: Mapping[str, Any], written: list[Move]) -> bytes:
    """The bytes of a receipt: what the job says, with `format`, `job`, `files` ({name: {size, sha256}}) and a seal.

    `files` that the job itself names are those that stay as they are. The seal, `sha256`, is over all the rest: a
    receipt with any other bit is damaged.
    """
    files = {move.name: {"size": move.size, "sha256": move.sha256 or None} for move in written if move.staged}
    return _sealed({**receipt, "files": {**receipt.get("files", {}), **files}, "format": _FORMAT, "job": job})


def _sealed(body: Mapping[str, Any]) -> bytes:
    return canonical({**body, "sha256": hashlib.sha256(canonical(body)).hexdigest()})


def read_receipt(path: Path, *, disk: Disk = DISK) -> dict[str, Any] | None:
    """Return the receipt of the folder `path`, or None where no job of surgery wrote it.

    A commit that was interrupted is not seen: `recover` first, or read within `consistent`.

    Raises:
        CheckpointError: there is no such folder, or its receipt is damaged.
        DiskError: it may not be read.
    """
    with told(path):
        try:
            folder = disk.open_path(path)
        except FileNotFoundError:
            raise CheckpointError("no such folder", str(path)) from None
        try:
            return receipt_in(disk, folder, path)
        finally:
            disk.close(folder)


def receipt_in(disk: Disk, folder: int, path: Path) -> dict[str, Any] | None:
    """`read_receipt` of an open folder; raises OSError where the disk refuses."""
    where = str(path / RECEIPT)
    data = read_small(disk, folder, RECEIPT, _LARGEST, where)
    if data is None:
        return None
    hint = "restore the file, or write the checkpoint anew into another folder"
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the receipt is damaged: {error}", where, hint) from None
    if not isinstance(value, dict) or not isinstance(value.get("job"), str):
        raise CheckpointError("the receipt is damaged: it names no job", where, hint)
    if value.get("format") != _FORMAT:
        what = f"the receipt has format {value.get('format')!r}, and this version of surgery reads {_FORMAT}"
        raise CheckpointError(what, where, "use the version of surgery that wrote it, or a newer one")
    seal = value.pop("sha256", None)
    try:
        is_whole = seal is not None and _sealed(value) == data
    except (ValueError, RecursionError):  # NaN, which no receipt holds
        is_whole = False
    if not is_whole:
        raise CheckpointError("the receipt is damaged: its checksum is another", where, hint)
    if not _is_table(value.get("files")):
        raise CheckpointError("the receipt is damaged: its list of files", where, hint)
    for name in value["files"]:
        check_name(name, where, nested=True)
    return value


def _is_table(files: Any) -> bool:
    """Anybody can seal a receipt: what is looked up in it must be there."""
    return isinstance(files, dict) and all(
        isinstance(entry, dict)
        and entry.keys() == {"size", "sha256"}
        and isinstance(entry["size"], int)
        and isinstance(entry["sha256"], str | None)
        for entry in files.values()
    )
