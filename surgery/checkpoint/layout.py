"""Where tensors stand in the files of a result: as in the base, unless they get another dtype."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from surgery.checkpoint.weights import Weights
from surgery.errors import CheckpointError
from surgery.planning.headers import SAFETENSORS_NAMES, TensorHeader
from surgery.planning.inventory import DTYPE_BYTES

__all__ = ["CAST", "Layout", "cast_of", "recast_config", "recast_index"]

CAST = frozenset({"float16", "bfloat16", "float32", "float64"})
"""What another dtype is for. Floats of eight bits mean something together with scales beside them, and stay."""


def cast_of(header: TensorHeader, dtype: str) -> str:
    """Return the dtype that a tensor of the base gets, or "" where it keeps its own."""
    return dtype if dtype and header.dtype in CAST and header.dtype != dtype else ""


@dataclass(frozen=True)
class Layout:
    """The files of a result.

    Attributes:
        headers: name of a tensor -> where it will be.
        heads: name of a file -> what will stand before its tensors; a file that is laid out as the base's is missing.
        sizes: name of a file -> its bytes.
    """

    headers: Mapping[str, TensorHeader]
    heads: Mapping[str, bytes]
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, weights: Weights, dtype: str) -> Layout:
        """Lay the base's tensors out, with `dtype` for those that `cast_of` says; "" for none."""
        files: dict[str, list[TensorHeader]] = defaultdict(list)
        for header in weights.headers.values():
            files[header.file.name].append(header)
        headers, heads, sizes = {}, {}, {}
        for name, base in weights.heads.items():
            sizes[name] = base.size
            made = {header.name: header for header in files[name]}
            if any(cast_of(header, dtype) for header in files[name]):
                made, heads[name] = _laid_out(files[name], dtype, _metadata(weights.head(name), name))
                sizes[name] = max((header.end for header in made.values()), default=len(heads[name]))
            headers.update(made)
        return cls(headers, heads, sizes)


def _metadata(head: bytes, name: str) -> Any:
    value = json.loads(head[8:])
    if not isinstance(value, dict):
        raise CheckpointError("the header is no object", name)
    return value.get("__metadata__")


def _laid_out(files: list[TensorHeader], dtype: str, metadata: Any) -> tuple[dict[str, TensorHeader], bytes]:
    """Lay a file out as safetensors does: the widest elements first, names in order, the header a multiple of 8."""
    cast = [(header, cast_of(header, dtype) or header.dtype) for header in files]
    cast.sort(key=lambda pair: (-DTYPE_BYTES[pair[1]], pair[0].name))
    table: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    made, at = {}, 0
    for header, kind in cast:
        end = at + math.prod(header.shape) * DTYPE_BYTES[kind]
        table[header.name] = {
            "dtype": SAFETENSORS_NAMES[kind],
            "shape": list(header.shape),
            "data_offsets": [at, end],
        }
        made[header.name] = replace(header, dtype=kind, start=at, end=end)
        at = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    shifted = {
        name: replace(header, start=header.start + len(head), end=header.end + len(head))
        for name, header in made.items()
    }
    return shifted, head


def recast_config(data: bytes, dtype: str) -> bytes:
    """Return a `config.json` that says `dtype` wherever it said a float: of the model, or of a part (`*_config`)."""
    value = json.loads(data)
    _recast(value, dtype)
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _recast(value: dict[str, Any], dtype: str) -> None:
    for key, item in value.items():
        if key in {"dtype", "torch_dtype"} and isinstance(item, str) and item.removeprefix("torch.") in CAST:
            value[key] = dtype
        elif key.endswith("_config") and key != "quantization_config" and isinstance(item, dict):
            _recast(item, dtype)


def recast_index(data: bytes, layout: Layout) -> bytes:
    """Return an index of shards that says the new size of all tensors."""
    value = json.loads(data)
    if isinstance(value.get("metadata"), dict) and "total_size" in value["metadata"]:
        value["metadata"]["total_size"] = sum(one.end - one.start for one in layout.headers.values())
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
