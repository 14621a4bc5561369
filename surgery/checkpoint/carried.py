"""The files beside the weights: configuration, tokenizer, licence. They go along, byte for byte."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from surgery.checkpoint.failures import told
from surgery.checkpoint.names import RECEIPT
from surgery.checkpoint.transaction import Transaction
from surgery.errors import CheckpointError

__all__ = ["Carried", "carried", "copy_file"]

_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".ckpt", ".onnx", ".gguf", ".ot"})
"""Files of other weights would not be those of the result."""
_MOST = 10_000


@dataclass(frozen=True)
class Carried:
    """What goes along.

    Attributes:
        files: (name with folders, size), sorted.
        left_out: weights in other files, which the result would contradict.
    """

    files: tuple[tuple[str, int], ...]
    left_out: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(size for _, size in self.files)

    def without(self, names: Collection[str]) -> Carried:
        """The same but for files that are written anew."""
        return Carried(tuple(one for one in self.files if one[0] not in names), self.left_out)

    def copy(self, folder: Path, tx: Transaction) -> None:
        """Stage all of them."""
        for name, size in self.files:
            copy_file(folder / name, size, tx, name)


def copy_file(path: Path, size: int, tx: Transaction, name: str) -> str:
    """Stage a copy of a file as `name`; return its sha256.

    Raises:
        CheckpointError: the file is shorter.
        DiskError: the disk refuses.
    """
    with told(path):
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with tx.create(name, size, digest=True) as file:
            file.copy_range(source, 0, size, 0)
    finally:
        os.close(source)
    assert file.sha256 is not None
    return file.sha256


def carried(folder: Path, weights: frozenset[str]) -> Carried:
    """Return what goes along of `folder`, whose weights are in the files `weights`.

    Hidden files and what surgery itself put there are left; links are followed to files, not to folders.
    """
    files: list[tuple[str, int]] = []
    left_out: list[str] = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with told(folder / inside), os.scandir(folder / inside) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{inside}{entry.name}"
                if entry.name.startswith(".") or name in weights or name in {RECEIPT, "surgery"}:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                elif Path(name).suffix.lower() in _WEIGHTS:
                    left_out.append(name)
                else:
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        files.append((name, status.st_size))
                if len(files) + len(left_out) + len(waiting) > _MOST:
                    raise CheckpointError(f"more than {_MOST:,} files", str(folder), "name the checkpoint's own folder")
    return Carried(tuple(sorted(files)), tuple(sorted(left_out)))
