"""Is a checkpoint what its receipt says, or what a base is? Nothing is written."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoint.consistent import consistent
from surgery.checkpoint.digest import sha256_of
from surgery.checkpoint.failures import told
from surgery.checkpoint.receipt import read_receipt
from surgery.checkpoint.record import KEY, MergedRecord
from surgery.checkpoint.weights import Weights
from surgery.engine import cores
from surgery.errors import CheckpointError, DriftError, Problem
from surgery.planning.headers import TensorHeader
from surgery.registry import Registry, load_registry

__all__ = ["Verified", "changed_files", "hashes", "verify_checkpoint"]

_BLOCK = 1 << 20
_SHOWN = 5
_BITS = "restore the file, or name another base"
_RESTORE = "restore it from a copy, or write the checkpoint anew"


@dataclass(frozen=True)
class Verified:
    """What was found to be right.

    Attributes:
        path: the folder.
        kind: `merged`, `unmerged` (by surgery, out of a merged one), or `plain` (no receipt).
        against: what it was compared with: `receipt`, `base`, both, or nothing.
        adapters: names of those that are merged in it.
        tensors, files: how many were compared.
        bytes: of all weights.
    """

    path: Path
    kind: str
    against: tuple[str, ...]
    adapters: tuple[str, ...]
    tensors: int
    files: int
    bytes: int

    def to_dict(self) -> Mapping[str, Any]:
        """Return JSON values."""
        return {**vars(self), "path": str(self.path), "against": list(self.against), "adapters": list(self.adapters)}


def verify_checkpoint(
    path: str | Path, base: str | Path | None = None, *, jobs: int | None = None, registry: Registry | None = None
) -> Verified:
    """Check a checkpoint against its receipt (every tensor and file by sha256), and against a base.

    A merged checkpoint agrees with a base when it was merged from that base's very bits; any other, when its tensors
    are that base's.

    Raises:
        DriftError: something is not what the receipt says, or the base is another one; all of it is told.
        CheckpointError: files are damaged or missing.
    """
    registry = registry or load_registry()
    folder = Path(path)
    with ExitStack() as stack:
        stack.enter_context(told(folder))
        if folder.is_dir() and os.access(folder, os.W_OK):
            folder = stack.enter_context(consistent(folder))
        weights = stack.enter_context(Weights(folder, registry))
        receipt = read_receipt(folder)
        record = MergedRecord.decode(receipt[KEY], str(folder)) if receipt and KEY in receipt else None
        known = (receipt or {}).get("weights")
        problems: list[Problem] = []
        against = []
        found = hashes(weights, jobs) if receipt is not None or base is not None else {}
        if known is not None and not _is_known(known):
            raise CheckpointError("the receipt is damaged: what it says of weights", str(folder), _RESTORE)
        if receipt is not None and (record is not None or known is not None):
            against.append("receipt")
            problems += _by_receipt(folder, weights, receipt, record, known, found)
        if base is not None:
            against.append("base")
            other = stack.enter_context(Weights(Path(base), registry))
            own = {n: one.base for n, one in record.tensors.items()} if record is not None else found
            problems += _differences(hashes(other, jobs), own, str(folder), f"the base {base}")
        if problems:
            rest = len(problems) - _SHOWN
            more = [Problem(f"and {rest} more differences", str(folder))] if rest > 0 else []
            raise DriftError.of([*problems[:_SHOWN], *more])
        kind = "merged" if record is not None else "unmerged" if receipt is not None else "plain"
        names = tuple(one.name for one in record.adapters) if record else ()
        files = len((receipt or {}).get("files", {}))
        size = sum(head.size for head in weights.heads.values())
        return Verified(Path(path), kind, tuple(against), names, len(weights.headers), files, size)


def _is_known(known: Any) -> bool:
    """Anybody can seal a receipt."""
    return (
        isinstance(known, dict)
        and known.keys() >= {"tensors", "heads"}
        and all(isinstance(known[part], dict) for part in ("tensors", "heads"))
    )


def _by_receipt(
    folder: Path,
    weights: Weights,
    receipt: Mapping[str, Any],
    record: MergedRecord | None,
    known: Any,
    found: Mapping[str, str],
) -> list[Problem]:
    heads = record.stored_heads if record is not None else known["heads"]
    expected = {n: one.merged for n, one in record.tensors.items()} if record is not None else known["tensors"]
    problems = [
        Problem("the header was changed", str(folder / name), _RESTORE)
        for name, head in weights.heads.items()
        if heads.get(name) != head.sha256
    ]
    problems += _differences(expected, found, str(folder), "the receipt")
    return problems + changed_files(folder, receipt)


def changed_files(folder: Path, receipt: Mapping[str, Any], *, notes: bool = True) -> list[Problem]:
    """Return what is wrong with the files beside the weights: those of which the receipt has the sha256.

    Without `notes`, pages such as README.md may say something else by now: no program reads them.
    """
    problems = []
    for name, entry in receipt["files"].items():
        if entry["sha256"] is None or (not notes and name.endswith(".md")):
            continue
        try:
            status = (folder / name).lstat()
        except OSError:
            problems.append(Problem("the file is missing", str(folder / name), _RESTORE))
            continue
        is_same = stat.S_ISREG(status.st_mode) and status.st_size == entry["size"]
        if not is_same or sha256_of(folder / name) != entry["sha256"]:
            problems.append(Problem("the file was changed since it was written", str(folder / name), _RESTORE))
    return problems


def _differences(expected: Mapping[str, str], found: Mapping[str, str], where: str, whose: str) -> list[Problem]:
    problems = [
        Problem(f"{whose} has {name!r}, which is missing", where) for name in sorted(set(expected) - set(found))
    ]
    problems += [Problem(f"{whose} does not have {name!r}", where) for name in sorted(set(found) - set(expected))]
    problems += [
        Problem(f"{name} has other bits than in {whose}", where, _BITS)
        for name in sorted(set(found) & set(expected))
        if found[name] != expected[name]
    ]
    return problems


def hashes(weights: Weights, jobs: int | None) -> dict[str, str]:
    """Return name of a tensor -> sha256 of its bytes."""

    def one(header: TensorHeader) -> str:
        digest, buffer, size = hashlib.sha256(), bytearray(_BLOCK), header.end - header.start
        for offset in range(0, size, _BLOCK):
            view = memoryview(buffer)[: min(_BLOCK, size - offset)]
            weights.read(header, offset, view)
            digest.update(view)
        return digest.hexdigest()

    headers = sorted(weights.headers.values(), key=lambda header: (header.file.name, header.start))
    with ThreadPoolExecutor(jobs or min(4, cores())) as pool:
        return dict(zip((header.name for header in headers), pool.map(one, headers), strict=True))
