"""The journal of a commit: which staged file becomes which, sealed by a checksum over all of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgery.checkpoint.names import RECEIPT, check_name
from surgery.errors import CheckpointError

__all__ = ["LARGEST_JOURNAL", "Journal", "Move"]

LARGEST_JOURNAL = 16 * 1024 * 1024
_HEAD = b"surgery-journal 1 "
_STAGED = re.compile(r"[0-9a-f]{1,32}-[0-9]{1,8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HINT = "restore the folder from a copy; its files are as they were when the journal was damaged"


@dataclass(frozen=True, slots=True)
class Move:
    """The staged file `staged` becomes `name`; without one, `name` is removed.

    `size` is in bytes; `sha256` is empty where it was not computed.
    """

    name: str
    staged: str = ""
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Journal:
    """What a commit has decided. The last move is the receipt: once it is there, all of the commit is."""

    job: str
    moves: tuple[Move, ...]

    def encode(self) -> bytes:
        """The bytes of the journal's file. The checksum covers the version as well as the moves and their number."""
        moves = [[move.name, move.staged, move.size, move.sha256] for move in self.moves]
        body = json.dumps({"job": self.job, "moves": moves}, sort_keys=True, separators=(",", ":")).encode()
        return _HEAD + _seal(body) + b"\n" + body

    @classmethod
    def decode(cls, data: bytes, where: str) -> Journal:
        """Read `data`, which anybody may have written.

        Raises:
            CheckpointError: it is damaged, or names files outside of the folder.
        """
        head, _, body = data.partition(b"\n")
        if head != _HEAD + _seal(body):
            raise CheckpointError("the journal of an unfinished commit is damaged", where, _HINT)
        try:
            value = json.loads(body)
            moves = tuple(_move(entry, where) for entry in value["moves"])
            job = value["job"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"the journal of an unfinished commit is damaged: {error}", where, _HINT) from error
        for names in ([move.name for move in moves], [move.staged for move in moves if move.staged]):
            if len(set(names)) != len(names):
                raise CheckpointError("the journal of an unfinished commit names a file twice", where, _HINT)
        if not isinstance(job, str) or not moves or moves[-1].name != RECEIPT:
            raise CheckpointError("the journal of an unfinished commit has no receipt", where, _HINT)
        return cls(job, moves)


def _seal(body: bytes) -> bytes:
    return hashlib.sha256(_HEAD + str(len(body)).encode() + b"\n" + body).hexdigest().encode()


def _move(entry: Any, where: str) -> Move:
    name, staged, size, sha256 = entry
    is_typed = isinstance(name, str) and isinstance(staged, str) and type(size) is int and isinstance(sha256, str)
    if not is_typed or size < 0:
        raise ValueError("an entry is not of the form [name, staged, size, sha256]")
    if name != RECEIPT:
        check_name(name, where, nested=True)
    elif not staged:
        raise ValueError("the receipt would be removed")
    if (staged and not _STAGED.fullmatch(staged)) or (sha256 and not _SHA256.fullmatch(sha256)):
        raise ValueError(f"the entry of {name!r} is malformed")
    return Move(name, staged, size, sha256)


def canonical(value: Mapping[str, Any]) -> bytes:
    """Readable JSON; equal values give equal bytes."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "surrogatepass")
