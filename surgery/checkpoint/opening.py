"""Opening a checkpoint, merged or not, with the adapters that are in it, and adapters to be merged."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from surgery.checkpoint.consistent import consistent
from surgery.checkpoint.failures import told
from surgery.checkpoint.native import NativeAdapter
from surgery.checkpoint.peft import PeftAdapter, is_peft
from surgery.checkpoint.receipt import read_receipt
from surgery.checkpoint.record import KEY, ORIGINALS, MergedRecord, adapter_folder
from surgery.checkpoint.saved import SavedAdapter
from surgery.checkpoint.source import Source
from surgery.checkpoint.verify import changed_files
from surgery.checkpoint.weights import Weights
from surgery.errors import CheckpointError, DriftError
from surgery.operation.store import CONFIG_FILE
from surgery.registry import Registry

__all__ = ["load", "opened"]


@contextmanager
def opened(folder: Path, registry: Registry, *, is_held: bool = False) -> Iterator[tuple[Source, list[SavedAdapter]]]:
    """Open a checkpoint, merged or not, with the adapters that are merged in it; checked, and fitted.

    `is_held` says that a transaction of the caller's keeps others from changing the folder.
    """
    with ExitStack() as stack:
        stack.enter_context(told(folder))  # whatever is asked of the disk below and says nothing of its own
        if not folder.is_dir():
            Weights(folder, registry)  # says what is wrong
        if not is_held and os.access(folder, os.W_OK):
            folder = stack.enter_context(consistent(folder))
        receipt = read_receipt(folder)
        if receipt is None or KEY not in receipt:
            yield stack.enter_context(Source(stack.enter_context(Weights(folder, registry)))), []
            return
        record = MergedRecord.decode(receipt[KEY], str(folder))
        originals = folder / ORIGINALS if record.dtype else None
        weights = stack.enter_context(Weights(folder, registry, originals))
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
    if {name: head.sha256 for name, head in weights.stored_heads.items()} != record.stored_heads:
        hint = "restore the files from a copy, or merge into the base again"
        raise DriftError("the headers of the weight files were changed since they were merged", str(folder), hint)
    if {name: head.sha256 for name, head in weights.heads.items()} != dict(record.heads):
        raise DriftError("the headers that were kept of the base were changed", str(folder), "restore them from a copy")
    if set(record.tensors) != set(weights.headers):
        raise DriftError("the weights hold other tensors than were merged", str(folder))
    problems = changed_files(folder, receipt, notes=False)
    if problems:
        raise DriftError.of(problems)


def load(folder: Path, name: str, factor: float, registry: Registry) -> SavedAdapter:
    """Read an adapter folder of either format."""
    with told(folder):
        if not (folder / CONFIG_FILE).exists() and is_peft(folder):
            return PeftAdapter(folder, name, factor)
        return NativeAdapter(folder, name, factor, registry)
