"""A site: one adaptable parameter of a model, or the part of a fused parameter that has a role of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Part", "Site"]

_MATRIX_HOSTS = frozenset({"linear", "conv1d", "embedding", "matrix"})
_EXPERT_HOSTS = frozenset({"experts", "transposed-experts"})
_TRANSPOSED_HOSTS = frozenset({"conv1d", "embedding", "transposed-experts"})


@dataclass(frozen=True, slots=True)
class Part:
    """A span of one axis of a fused parameter.

    The axis, seen as an array of shape `view`, is narrowed along `dim` to `[start, start + length)`; the flattened
    result is the list of indices. Contiguous thirds, per-head interleaving and grouped layouts are all of this form.
    """

    axis: int
    view: tuple[int, ...]
    dim: int
    start: int
    length: int

    @property
    def size(self) -> int:
        """How many indices of the axis belong to the part."""
        return math.prod(self.view) // self.view[self.dim] * self.length

    def indices(self) -> tuple[int, ...]:
        """Return the indices along `axis`, in order."""
        inner = math.prod(self.view[self.dim + 1 :])
        block = self.view[self.dim] * inner
        outer = math.prod(self.view[: self.dim])
        return tuple(
            base * block + offset
            for base in range(outer)
            for offset in range(self.start * inner, (self.start + self.length) * inner)
        )

    def span(self) -> tuple[int, int] | None:
        """Return (start, length) when the indices are one contiguous run, else None."""
        if math.prod(self.view[: self.dim]) != 1:
            return None
        inner = math.prod(self.view[self.dim + 1 :])
        return self.start * inner, self.length * inner


@dataclass(frozen=True, slots=True)
class Site:
    """One adaptable parameter (or part of one): what it is, where it is, and what shape it has.

    Attributes:
        role: canonical role such as `attention.query`, or `other.<path>`.
        stack: which stack of layers it belongs to (`encoder`, `decoder`, ...); empty outside of stacks.
        layer: index in the stack; None outside of layers.
        path: module path, as `model.get_submodule` takes it.
        parameter: the parameter's name in that module (`weight`, `bias`, ...).
        shape: shape of the site as stored (for a part: with the part's length on its axis).
        dtype: the torch dtype's name, e.g. `float32`.
        host: what holds it: `linear`, `conv1d`, `embedding`, `norm`, `matrix` (a linear map that no linear module
            applies), `experts` (one 3-D tensor for all experts), `transposed-experts`, or `other`.
        slice: the part of a fused parameter, or None for the whole.
        tied: full names of the other parameters that are the same tensor.
        open: roles that the site may hold, where nobody knows its layout; empty where its role is known.
    """

    role: str
    stack: str
    layer: int | None
    path: str
    parameter: str
    shape: tuple[int, ...]
    dtype: str
    host: str
    slice: Part | None = None
    tied: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Full parameter name in the model."""
        return f"{self.path}.{self.parameter}" if self.path else self.parameter

    @property
    def key(self) -> str:
        """A unique name of the site: the parameter's name, and the role where the parameter is fused."""
        return f"{self.name}:{self.role}" if self.slice else self.name

    @property
    def size(self) -> int:
        """Number of elements of the site."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether the site is a 2-D weight of a linear map or a lookup table."""
        return len(self.shape) == 2 and self.host in _MATRIX_HOSTS

    @property
    def experts(self) -> int:
        """How many experts' linear maps the site holds, for a 3-D weight of experts; else 0."""
        return self.shape[0] if len(self.shape) == 3 and self.host in _EXPERT_HOSTS else 0

    @property
    def is_transposed(self) -> bool:
        """Whether matrices are stored (fan_in, fan_out) rather than (fan_out, fan_in)."""
        return self.host in _TRANSPOSED_HOSTS and (len(self.shape) == 2 if not self.experts else True)

    @property
    def fan_out(self) -> int:
        """Output features of the site's linear map (its length, for a vector)."""
        return self._map[1] if self.is_transposed else self._map[0] if self._map else 1

    @property
    def fan_in(self) -> int:
        """Input features of the site's linear map (1 for a vector; the table's rows for an embedding)."""
        if len(self._map) < 2:
            return 1
        return self._map[0] if self.is_transposed else math.prod(self._map[1:])

    @property
    def _map(self) -> tuple[int, ...]:
        """Shape of one linear map."""
        return self.shape[1:] if self.experts else self.shape
