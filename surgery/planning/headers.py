"""The headers of a safetensors checkpoint: no weights, no torch.

Files are untrusted: sizes are bounded, names are validated, and every inconsistency is an error before use.
"""

from __future__ import annotations

import json
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import CheckpointError
from surgery.planning.inventory import DTYPE_BYTES

__all__ = [
    "MAX_HEAD", "SAFETENSORS_NAMES", "TensorHeader", "check_index", "parse_head", "read_checkpoint_headers",
    "read_config", "read_header", "read_json", "read_settings",
]  # fmt: skip

_MAX_HEADER = 32 * 1024 * 1024
MAX_HEAD = 8 + _MAX_HEADER
"""Most bytes that stand before the tensors of a file."""
_MAX_INDEX = 64 * 1024 * 1024
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip
SAFETENSORS_NAMES: Mapping[str, str] = {ours: theirs for theirs, ours in _DTYPES.items()}
"""How files call a dtype."""
_FILE_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where one tensor of a file is: `start` and `end` are byte offsets from the beginning of the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Read and check one file's header.

    Raises:
        CheckpointError: the file is unreadable, truncated, or its header is inconsistent or too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("it is no regular file", str(path))
        size = status.st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
            if length < 0 or length > size - 8:
                raise CheckpointError("the file is truncated or is no safetensors file", str(path))
            if length > _MAX_HEADER:
                raise CheckpointError(f"the header has {length} bytes; at most {_MAX_HEADER} are read", str(path))
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read the file: {error.strerror}", str(path)) from error
    return _headers(raw, path, size)


def parse_head(data: bytes, path: Path) -> tuple[dict[str, TensorHeader], int]:
    """Read what stood before the tensors of a file: where they were, and how many bytes the file had.

    Raises:
        CheckpointError: it is damaged.
    """
    if len(data) < 8 or int.from_bytes(data[:8], "little") != len(data) - 8 or len(data) > MAX_HEAD:
        raise CheckpointError("the header that was kept is damaged", str(path))
    ends = [
        value["data_offsets"][1]
        for name, value in _json_object(data[8:], path).items()
        if name != "__metadata__" and isinstance(value, dict) and _is_counts(value.get("data_offsets"))
    ]
    size = len(data) + max(ends, default=0)
    return _headers(data[8:], path, size), size


def _headers(raw: bytes, path: Path, size: int) -> dict[str, TensorHeader]:
    table = _json_object(raw, path)
    table.pop("__metadata__", None)
    headers = {name: _tensor(path, name, value, 8 + len(raw), size) for name, value in table.items()}
    _check_layout(headers, path, 8 + len(raw), size)
    return headers


def read_checkpoint_headers(folder: Path) -> dict[str, TensorHeader]:
    """Read the headers of a checkpoint folder (one file, or shards with an index) or of one file."""
    if folder.is_file():
        return read_header(folder)
    if (folder / _INDEX).is_file():
        return _read_shards(folder)
    if (folder / _SINGLE).is_file():
        return read_header(folder / _SINGLE)
    pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt"))
    if pickled:
        raise CheckpointError(
            f"only pickled weights here ({', '.join(pickled[:3])}); they can run code and are not read",
            str(folder),
            "convert them where you trust them: model.save_pretrained(folder) writes safetensors",
        )
    hint = "name a folder that holds a checkpoint"
    if any((folder / name).is_file() for name in ("adapter.json", "adapter_config.json")):
        hint = f"this is an adapter: {hint}"
    raise CheckpointError("no model.safetensors and no index here", str(folder), hint)


def check_index(folder: Path) -> None:
    """Refuse a folder whose index of shards is wrong; one without an index is left to whoever reads it.

    Raises:
        CheckpointError: what is wrong with the index or its shards.
    """
    try:
        is_sharded = (folder / _INDEX).is_file()
    except (OSError, ValueError):  # no path at all, but the name of a model
        return
    if is_sharded:
        _read_shards(folder)


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return the folder's `config.json`, or an empty mapping when there is none."""
    return read_settings(folder / "config.json" if folder.is_dir() else folder.parent / "config.json")


def read_settings(path: Path) -> Mapping[str, Any]:
    """Return what a configuration file of any name says, or an empty mapping when there is none."""
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> Mapping[str, Any]:
    """Return a JSON file that holds an object: bounded, no key twice.

    Raises:
        CheckpointError: it is too large, cannot be read, or is no object.
    """
    try:
        if path.stat().st_size > _MAX_HEADER:
            raise CheckpointError(f"{path.name} is too large", str(path))
        return _json_object(path.read_bytes(), path)
    except OSError as error:
        raise CheckpointError(f"cannot read the file: {error.strerror}", str(path)) from error


def _json_object(raw: bytes, path: Path) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise CheckpointError("a key stands twice in the JSON of this file", str(path))
        return table

    try:
        value = json.loads(raw, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the JSON of this file cannot be read: {error}", str(path)) from error
    if not isinstance(value, dict):
        raise CheckpointError("the JSON of this file is no object", str(path))
    return value


def _tensor(path: Path, name: str, value: Any, offset: int, size: int) -> TensorHeader:
    where = f"{path}: tensor {name!r}"
    if not name or len(name) > 512 or not name.isprintable():
        raise CheckpointError("a tensor's name is empty, too long or unprintable", where)
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError("a tensor's header must hold dtype, shape and data_offsets", where)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(f"unknown dtype {str(dtype)[:40]!r}", where)
    if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2 or len(shape) > 16:
        raise CheckpointError("shape and data_offsets must be lists of counts", where)
    expected = DTYPE_BYTES[_DTYPES[dtype]]
    for extent in shape:
        expected *= extent
    if offsets[1] - offsets[0] != expected or offset + offsets[1] > size:
        raise CheckpointError("data_offsets do not agree with the shape or with the file's size", where)
    return TensorHeader(path, name, _DTYPES[dtype], tuple(shape), offset + offsets[0], offset + offsets[1])


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**62 for item in value)


def _check_layout(headers: Mapping[str, TensorHeader], path: Path, offset: int, size: int) -> None:
    cursor = offset
    for header in sorted(headers.values(), key=lambda header: (header.start, header.end)):
        if header.start != cursor:
            raise CheckpointError("tensors overlap or leave a hole in the file", f"{path}: tensor {header.name!r}")
        cursor = header.end
    if cursor != size:
        raise CheckpointError(f"the file has {size} bytes where its header accounts for {cursor}", str(path))


def _read_shards(folder: Path) -> dict[str, TensorHeader]:
    index = folder / _INDEX
    if index.stat().st_size > _MAX_INDEX:
        raise CheckpointError("the index is too large", str(index))
    table = _json_object(index.read_bytes(), index).get("weight_map")
    if not isinstance(table, dict):
        raise CheckpointError("the index has no weight_map", str(index))
    merged: dict[str, TensorHeader] = {}
    for file in sorted({str(value) for value in table.values()}):
        if not _FILE_NAME.fullmatch(file):
            raise CheckpointError(f"the index names {file!r}, which is no plain safetensors file name", str(index))
        shard = folder / file
        if not shard.is_file():
            raise CheckpointError(f"the index names {file}, which is missing", str(index))
        for name, header in read_header(shard).items():
            if table.get(name) != file:
                raise CheckpointError(f"tensor {name!r} of {file} is not where the index says", str(index))
            merged[name] = header
    missing = sorted(set(table) - set(merged))
    if missing:
        raise CheckpointError(
            f"the index names {missing[0]!r} (and {len(missing) - 1} more) that no shard holds", str(index)
        )
    return merged
