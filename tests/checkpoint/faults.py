"""Merging on a disk that stops or fails at the n-th thing that is asked of it, reads included."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commit_disks import CHANGES, Hooked

from surgery.checkpoint import Transaction, carried, merge, opening, source, stream, verify, weights, work

__all__ = ["EVERYTHING", "WRITES", "faulty"]

_OF_OS = ("open", "pread", "preadv", "pwrite", "scandir")
WRITES = CHANGES | {"os.pwrite"}
EVERYTHING = (
    WRITES
    | {f"os.{name}" for name in _OF_OS}
    | {"open_path", "open_folder", "open", "look", "look_at", "list", "read", "free", "lock", "path.open", "path.stat"}
)
"""What may fail."""


class _Os:
    """The module `os` for one module of surgery: what reads and writes goes through the disk."""

    def __init__(self, disk: Hooked) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in _OF_OS:
            return real
        return lambda *args, **kwargs: self._disk.do(f"os.{name}", lambda: real(*args, **kwargs))


@contextmanager
def faulty(disk: Hooked, root: Path) -> Iterator[Hooked]:
    """Within the block all that merging, unmerging and verifying do below `root` goes through `disk`."""

    def through(name: str) -> Any:
        real = getattr(pathlib.Path, name)

        def call(path: Path, *args: Any, **kwargs: Any) -> Any:
            if not path.is_relative_to(root):
                return real(path, *args, **kwargs)
            return disk.do(f"path.{name}", lambda: real(path, *args, **kwargs))

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module in (carried, source, stream, weights):
            patch.setattr(module, "os", _Os(disk))
        for module in (opening, verify):
            for name in ("consistent", "read_receipt"):
                patch.setattr(module, name, partial(getattr(module, name), disk=disk))
        for module in (merge, work):
            patch.setattr(module, "Transaction", partial(Transaction, disk=disk))
        for name in ("open", "stat"):
            patch.setattr(pathlib.Path, name, through(name))
        yield disk
