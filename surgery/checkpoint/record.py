"""What the receipt of a merged checkpoint says: of what it was made, and how to get that back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from surgery.errors import CheckpointError

__all__ = ["KEY", "ORIGINALS", "RESIDUE", "AdapterRecord", "MergedRecord", "TensorRecord", "adapter_folder"]

KEY = "merge"
"""Where it stands in the receipt."""
RESIDUE = "surgery/residue.bin"
ORIGINALS = "surgery/original"
"""What the base had before its dtype was changed: heads of files, `config.json`, the index."""
_VERSION = 1
_SHA = 64


def adapter_folder(name: str) -> str:
    """The folder within a merged checkpoint that keeps the adapter `name`."""
    return f"surgery/adapters/{name}"


@dataclass(frozen=True)
class AdapterRecord:
    """One merged adapter.

    Attributes:
        name, format, factor: as it was merged.
        digest: stands for all of it.
        files: names of its files.
    """

    name: str
    format: str
    factor: float
    digest: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of a file.

    Attributes:
        file: the file's name.
        base, merged: sha256 of its bytes before and after.
        at: byte in the residue where its blocks begin; -1 where it was not changed.
        blocks: bytes of each block's residue.
    """

    file: str
    base: str
    merged: str
    at: int = -1
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class MergedRecord:
    """All of it.

    Attributes:
        undo: `residue`, `copy`, `file` or `none`.
        base: where the base was.
        fast: whether sums were rounded from one slice.
        heads: name of a file -> sha256 of what stands before its tensors.
        adapters: in the order of their names.
        tensors: by name.
        dtype: what tensors were written in, where that is not their own.
        written: as `heads`, for files that were laid out anew for it.
    """

    undo: str
    base: str
    fast: bool
    heads: Mapping[str, str]
    adapters: tuple[AdapterRecord, ...]
    tensors: Mapping[str, TensorRecord] = field(default_factory=dict)
    dtype: str = ""
    written: Mapping[str, str] = field(default_factory=dict)

    @property
    def stored_heads(self) -> Mapping[str, str]:
        """Name of a file -> sha256 of what stands before its tensors now."""
        return {**self.heads, **self.written}

    def encode(self) -> dict[str, Any]:
        """Return JSON values, with a checksum over them."""
        body: dict[str, Any] = {**asdict(self), "version": _VERSION}
        return {**body, "sha256": _digest(body)}

    @classmethod
    def decode(cls, value: Any, where: str) -> MergedRecord:
        """Read what `encode` gave.

        Raises:
            CheckpointError: it is damaged, or of another version.
        """
        damaged = CheckpointError(
            "the record of the merge is damaged", where, "restore the file from a copy, or merge into the base again"
        )
        if not isinstance(value, dict):
            raise damaged
        body = {key: item for key, item in value.items() if key != "sha256"}
        if value.get("sha256") != _digest(body):
            raise damaged
        if body.pop("version", None) != _VERSION:
            raise CheckpointError("the record of the merge is of another version", where, "use a newer surgery")
        try:
            adapters = tuple(AdapterRecord(**{**one, "files": tuple(one["files"])}) for one in body.pop("adapters"))
            tensors = {
                name: TensorRecord(**{**one, "blocks": tuple(one["blocks"])})
                for name, one in body.pop("tensors").items()
            }
            return cls(adapters=adapters, tensors=tensors, **body)
        except (TypeError, KeyError, AttributeError) as error:
            raise damaged from error


def _digest(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=list)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
