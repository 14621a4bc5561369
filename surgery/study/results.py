"""The results file: one line per finished cell, synced, so that a kill loses at most the cells in flight."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from surgery.errors import StateError

__all__ = [
    "RESULTS",
    "STUDY",
    "Record",
    "Results",
    "digest_of",
    "plain_json",
    "read_records",
    "without_timings",
    "write_atomically",
]

Check: TypeAlias = Callable[[Mapping[str, Any]], str]
"""What is wrong with a record; empty if nothing is."""

Record: TypeAlias = Mapping[str, Any]
"""What one cell found out: plain JSON. `timing` and `machine` may differ between two equal runs; nothing else may."""

RESULTS = "results.jsonl"
STUDY = "study.json"
_LOCK = ".lock"


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: readers see the old file or the new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync_folder(path.parent)


def without_timings(record: Record) -> dict[str, Any]:
    """Return the part of `record` that two runs of one cell must agree on."""
    return {name: value for name, value in record.items() if name not in ("timing", "machine")}


def digest_of(records: Iterable[Record]) -> str:
    """Return the sha256 of the lines of `records`, times and machines aside: equal studies give equal ones."""
    whole = hashlib.sha256()
    for record in records:
        whole.update(_line(without_timings(record)).encode())
    return whole.hexdigest()


def plain_json(text: str | bytes) -> Any:
    """Return what `text` says, whoever wrote it.

    Raises:
        ValueError: it is no JSON, holds numbers that are not finite, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _sound(_record: Record) -> str:
    return ""


def read_records(path: Path, check: Check = _sound) -> tuple[dict[str, Record], str]:
    """Return key -> record, and a note about a torn last line that was left out (empty if there was none).

    Args:
        path: of the file; one that is not there has no records.
        check: says what is wrong with a record.

    Raises:
        StateError: a line other than the last cannot be read, `check` finds something wrong with one, or two lines
            tell different results of one cell.
    """
    records: dict[str, Record] = {}
    note = ""
    text = path.read_bytes() if path.exists() else b""
    lines = text.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _parsed(line)
        if record is None and number == len(lines):
            note = f"{path.name}:{number} was cut off while it was written; its cell runs again"
            continue
        if record is None:
            raise StateError(
                "this line is not a result",
                f"{path}:{number}",
                "restore the file, or delete the line: its cell runs again",
            )
        if fault := check(record):
            hint = "restore the file, or delete the line: its cell runs again"
            raise StateError(f"this line is not a result: {fault}", f"{path}:{number}", hint)
        known = records.get(record["key"])
        if known is not None and without_timings(known) != without_timings(record):
            raise StateError(
                f"two lines tell different results of the cell {record['key'][:8]}",
                f"{path}:{number}",
                "delete one of the lines, or both to run the cell again",
            )
        records[record["key"]] = record
    return records, note


class Results:
    """The results of one study in its folder. Made by `Results.opened`, which holds the folder's lock meanwhile.

    Attributes:
        folder: where everything of the study lies.
        records: key -> record of every finished cell.
        note: what was repaired when the folder was opened; empty if nothing.
    """

    def __init__(self, folder: Path, records: dict[str, Record], note: str) -> None:
        self.folder = folder
        self.records = records
        self.note = note

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, identity: Record, check: Check = _sound) -> Iterator[Results]:
        """Open (or begin) the study that `identity` describes in `folder`, and lock it.

        Args:
            folder: new, empty, or of the same study.
            identity: plain JSON with at least `hash` and `name`; kept in `study.json`.
            check: says what is wrong with a record.

        Raises:
            StateError: the folder holds another study or other files, or another process is at work in it.
        """
        _make_folder(folder)
        with _locked(folder):
            _claim(folder, identity)
            path = folder / RESULTS
            records, note = read_records(path, check)
            if note or _unfinished(path):
                write_atomically(path, "".join(_line(record) for record in records.values()))
            yield cls(folder, records, note)

    def append(self, record: Record) -> None:
        """Add one finished cell; on return it is on the disk."""
        with (self.folder / RESULTS).open("ab") as file:
            # One write: a kill leaves a prefix of the line, which cannot be read as JSON.
            file.write(_line(record).encode())
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self.folder)
        self.records[record["key"]] = record

    def settle(self, order: Sequence[str]) -> None:
        """Rewrite the file in the order of the keys in `order`, whatever order the cells finished in."""
        kept = [self.records[key] for key in order if key in self.records]
        rest = [self.records[key] for key in sorted(set(self.records) - set(order))]
        write_atomically(self.folder / RESULTS, "".join(_line(record) for record in (*kept, *rest)))


def _line(record: Record) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"


def _parsed(line: bytes) -> Record | None:
    try:
        record = plain_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("key"), str) else None


def _unfinished(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"the folder cannot be made: {error.strerror}", str(folder)) from None
    strangers = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    if strangers and STUDY not in strangers:
        raise StateError(
            f"the folder holds other files ({', '.join(sorted(strangers)[:3])}) and no study",
            str(folder),
            "choose a new or empty folder with --out",
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # flock belongs to the open file: it ends with the process, however that ends, and leaves nothing to clean up.
    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                "another process is at work in this folder",
                str(folder),
                "wait for it, stop it, or choose another --out",
            ) from None
        yield


def _begin(path: Path, identity: Record) -> None:
    write_atomically(path, json.dumps(identity, sort_keys=True, indent=1, ensure_ascii=False) + "\n")


def _claim(folder: Path, identity: Record) -> None:
    path = folder / STUDY
    if not path.exists():
        _begin(path, identity)
        return
    try:
        known = plain_json(path.read_bytes())
        same = known["hash"] == identity["hash"]
        name = known["name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise StateError("this file does not describe a study", str(path), "choose another --out") from None
    if not same and not (folder / RESULTS).exists():
        # Nothing was run for the study that is known here: it was refused while its arms were planned.
        _begin(path, identity)
        return
    if not same:
        raise StateError(
            f"the folder holds another study ({name!r}, {str(known['hash'])[:8]}) than this one "
            f"({identity['name']!r}, {str(identity['hash'])[:8]}): {_difference(known, identity)}",
            str(folder),
            "choose another --out, or give the study file this folder was begun with",
        )


def _difference(known: Record, identity: Record, limit: int = 3) -> str:
    """Return the first keys in which two studies differ."""
    paths = [path for path in _differing(known, identity, "") if path != "hash"]
    return f"they differ in {', '.join(paths[:limit])}{' and more' if len(paths) > limit else ''}"


def _differing(left: Any, right: Any, path: str) -> Iterator[str]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in sorted({*left, *right}):
            yield from _differing(left.get(key), right.get(key), f"{path}.{key}" if path else str(key))
    elif left != right:
        yield path


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
