"""Jobs that must happen exactly once: what they write depends on what is there."""

from __future__ import annotations

from pathlib import Path

from surgery.checkpoint import RECEIPT, Disk, Transaction
from surgery.checkpoint.failures import told
from surgery.checkpoint.places import Places

OUT = Path("/models/out")
SHARDS = ("a.safetensors", "b.safetensors", "c.safetensors")
OLD = {name: f"{name} of the base, which is some text long ".encode() for name in SHARDS} | {
    "undo.old": b"an old journal",
    "kept/old/undo": b"one in a folder that goes with it",
}
NEW = {name: OLD[name] + b"+1" for name in SHARDS} | {
    "undo.new": b"a new journal of many bytes, which may tear",
    "kept/new/undo": b"one in a folder that comes with it",
}
FRESH = {"config.json": b"{}", "1_Pooling/config.json": b'{"a": 1}', "model.safetensors": b"weights" * 9}


def read(disk: Disk, path: Path, name: str) -> bytes:
    with told(path / name):
        return _read(disk, path, name)


def _read(disk: Disk, path: Path, name: str) -> bytes:
    folder = disk.open_path(path)
    try:
        file = disk.open(folder, name)
        try:
            return disk.read(file, 0, 1 << 20)
        finally:
            disk.close(file)
    finally:
        disk.close(folder)


def merge(disk: Disk, out: Path = OUT, job: str = "merge a", patience: float = 0.0) -> bool:
    """Add `+1` to every shard, in place of the old; return whether there was anything to do."""
    with Transaction(out, "replace", job=job, disk=disk, patience=patience) as tx:
        if tx.done:
            return False
        tx.reserve(1000)
        for name in SHARDS:
            data = read(disk, out, name) + b"+1"
            with tx.create(name, len(data), digest=name.startswith("a")) as file:
                file.write_at(0, data[:20])
                file.write_at(20, data[20:])
        for name in ("undo.new", "kept/new/undo"):
            tx.write(name, NEW[name])
        for name in ("undo.old", "kept/old/undo"):
            tx.remove(name)
        tx.commit({"adapter": "a"})
    return True


def build(disk: Disk, out: Path = OUT, job: str = "build") -> bool:
    """Make a folder that is not there."""
    with Transaction(out, "new", job=job, disk=disk, patience=0.0) as tx:
        if tx.done:
            return False
        tx.reserve(100)
        for name, data in FRESH.items():
            tx.write(name, data)
        tx.commit({"of": "nothing"})
    return True


def prepare(disk: Disk, out: Path = OUT, files: dict[str, bytes] | None = None) -> None:
    """Make the folders above `out`, and `out` with `files` where they are given."""
    place = disk.open_path(Path(out.anchor))
    parts = out.parts[1:] if files is not None else out.parts[1:-1]
    for part in parts:
        if disk.look(place, part) is None:
            disk.make_folder(place, part)
        inner = disk.open_folder(place, part)
        disk.close(place)
        place = inner
    for name, data in (files or {}).items():
        *folders, plain = name.split("/")
        with Places(disk, place, out) as places:
            file = disk.create(places.handle(tuple(folders), make=True), plain)
        disk.write(file, 0, memoryview(data))
        disk.close(file)
    disk.close(place)


def without_receipt(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name != RECEIPT}
