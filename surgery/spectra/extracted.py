"""What an extraction found, kept and left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from surgery.architecture import Site

__all__ = ["Extraction", "MatrixExtract", "Uncovered", "finite", "kind_of"]


@dataclass(frozen=True)
class MatrixExtract:
    """One site that the adapter covers.

    Attributes:
        name, role, stack, layer, experts, shape: which one; shape as (fan_out, fan_in), experts 0 for a plain matrix.
        relative_norm: |dW| / |W| (Frobenius, over all experts); inf where W is zero.
        rank: of the factors; None where the tuned parameter is taken over as it is.
        full_rank: the largest rank that the matrix can have.
        kept: share of |dW|^2 that the adapter holds.
        error: |dW - BA| / |dW|.
        energy: |dW|^2.
        parameters: numbers in the adapter.
        size: numbers in the site itself.
    """

    name: str
    role: str
    stack: str
    layer: int | None
    experts: int
    shape: tuple[int, int]
    relative_norm: float
    rank: int | None
    full_rank: int
    kept: float
    error: float
    energy: float
    parameters: int
    size: int

    @property
    def is_oversized(self) -> bool:
        """Whether the adapter needs more numbers than the matrix has."""
        return self.parameters > self.size

    def with_rank(self, rank: int | None, parameters: int) -> MatrixExtract:
        """Return the same with the rank and the numbers that the plan gives it."""
        return replace(self, rank=rank, parameters=parameters)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        told = {**asdict(self), "shape": list(self.shape), "oversized": self.is_oversized}
        return {**told, "relative_norm": finite(self.relative_norm)}


@dataclass(frozen=True)
class Uncovered:
    """One site that changed and that the adapter does not cover.

    Attributes:
        name, role: which one.
        kind: `bias`, `norm`, `embedding`, `head`, `router`, `matrix` or `other`.
        relative_norm: |dW| / |W|, of finite elements; inf where W is zero.
        energy: |dW|^2.
    """

    name: str
    role: str
    kind: str
    relative_norm: float
    energy: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "relative_norm": finite(self.relative_norm)}


@dataclass(frozen=True)
class Extraction:
    """What became of a full fine-tune.

    Attributes:
        folder: the adapter's.
        covered: what the adapter holds.
        unchanged: names of sites that were asked for and are the same in both checkpoints.
        uncovered: what else changed.
        only_base, only_tuned, reshaped: names of parameters that cannot be compared.
        parameters, model_parameters: numbers in the adapter, and in the base.
        are_ranks_rounded: whether ranks were rounded up, so that a spec can hold them.
    """

    folder: Path
    covered: tuple[MatrixExtract, ...]
    unchanged: tuple[str, ...]
    uncovered: tuple[Uncovered, ...]
    only_base: tuple[str, ...]
    only_tuned: tuple[str, ...]
    reshaped: tuple[str, ...]
    parameters: int
    model_parameters: int
    are_ranks_rounded: bool

    @property
    def kept(self) -> float:
        """Share of |dW|^2 that the adapter holds of the sites that it covers."""
        return self._held / max(math.fsum(one.energy for one in self.covered), math.ulp(0.0))

    @property
    def kept_of_all(self) -> float:
        """Share of |dW|^2 that the adapter holds of everything that changed and can be compared."""
        everything = math.fsum([*(one.energy for one in self.covered), *(one.energy for one in self.uncovered)])
        return self._held / max(everything, math.ulp(0.0))

    @property
    def _held(self) -> float:
        return math.fsum(one.kept * one.energy for one in self.covered)

    def to_dict(self) -> Mapping[str, Any]:
        """Return JSON values."""
        return {
            "covered": [one.to_dict() for one in self.covered],
            "unchanged": list(self.unchanged),
            "uncovered": [one.to_dict() for one in self.uncovered],
            "only_base": list(self.only_base),
            "only_tuned": list(self.only_tuned),
            "reshaped": list(self.reshaped),
            "parameters": self.parameters,
            "model_parameters": self.model_parameters,
            "ranks_rounded": self.are_ranks_rounded,
            "kept": self.kept,
            "kept_of_all": self.kept_of_all,
        }


def finite(number: float) -> float | None:
    """Return what JSON can say: None for inf and NaN."""
    return number if math.isfinite(number) else None


def kind_of(site: Site) -> str:
    """Return which kind of parameter a site is, in the words of `Uncovered`."""
    if site.host == "norm" or site.role.startswith("norm."):
        return "norm"
    if site.parameter.endswith("bias"):
        return "bias"
    for kind in ("embedding", "head"):
        if site.role.startswith(f"{kind}."):
            return kind
    if site.role == "moe.router":
        return "router"
    return "matrix" if site.is_matrix or site.experts else "other"
