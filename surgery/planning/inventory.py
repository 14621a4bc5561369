"""What a model holds, as data: names, shapes, dtypes, hosts and ties, without a tensor."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

__all__ = ["DTYPE_BYTES", "Inventory", "ParameterEntry"]

DTYPE_BYTES: dict[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1, "uint16": 2, "uint32": 4, "uint64": 8,
    "complex32": 4, "complex64": 8, "complex128": 16, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ParameterEntry:
    """One name of one parameter.

    Attributes:
        path: path of the module that holds it.
        parameter: its name there.
        shape, dtype: as stored; the dtype by torch's name.
        host: `linear`, `conv1d`, `embedding`, `norm`, `experts`, `transposed-experts` or `other`; empty when only a
            file header is known.
        interleaved: whether the rows of gate and up alternate in a weight of experts, instead of standing in halves.
    """

    path: str
    parameter: str
    shape: tuple[int, ...]
    dtype: str
    host: str
    interleaved: bool = False

    @property
    def name(self) -> str:
        return f"{self.path}.{self.parameter}" if self.path else self.parameter

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * DTYPE_BYTES.get(self.dtype, 4)


@dataclass(frozen=True)
class Inventory:
    """All parameters of a model in module order.

    Attributes:
        model_type: the `model_type` of its configuration, if it has one.
        class_name: name of the model's class, if known.
        origin: `model`, `config` or `headers`: what the inventory was taken from.
        entries: one for each name; a tied parameter has several.
        ties: name -> all other names of the same tensor, for tied names only.
        config: the configuration itself: an object, or what `config.json` holds.
        aliases: names of tied tensors that are not what the tensor is called, such as a head's for the tokens' table.
        settings: what the model's configuration says, by name.
    """

    model_type: str | None
    class_name: str
    origin: str
    entries: tuple[ParameterEntry, ...]
    ties: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    config: Any = field(default=None, compare=False, repr=False)
    aliases: Collection[str] = ()

    def canonical(self, name: str) -> str:
        """Return the first name, in module order, of the tensor called `name`; aliases come last."""
        others = self.ties.get(name, ())
        return min((name, *others), key=self.rank) if others else name

    def rank(self, name: str) -> tuple[bool, int]:
        """Return what names of one tensor are sorted by."""
        return name in self.aliases, self._order[name]

    @cached_property
    def _order(self) -> dict[str, int]:
        return {entry.name: index for index, entry in enumerate(self.entries)}

    @property
    def parameters(self) -> int:
        """Number of elements, tied tensors counted once."""
        return sum(entry.size for entry in self.distinct)

    @property
    def bytes(self) -> int:
        """Bytes of all parameters, tied tensors counted once."""
        return sum(entry.bytes for entry in self.distinct)

    @cached_property
    def distinct(self) -> tuple[ParameterEntry, ...]:
        """One entry for each tensor."""
        tied = {name for name in self.ties if self.canonical(name) != name}
        return tuple(entry for entry in self.entries if entry.name not in tied)
