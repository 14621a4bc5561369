"""Products with a weight: what the base makes of its inputs, and beside it what the adapters' small factors make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn import functional as F

from surgery.adapter.factors import Factors
from surgery.adapter.parts import spread_parts
from surgery.architecture import Site

__all__ = ["Factored", "Gathered", "Grouped", "OneMap", "Product", "through"]


@dataclass(frozen=True)
class Factored:
    """One link of a chain: the site, and what its adapter does there.

    Attributes:
        site: the site.
        factors: what its adapter said.
        training: whether the adapter trains, so that its dropout counts.
    """

    site: Site
    factors: Factors
    training: bool


@dataclass(frozen=True)
class Product(ABC):
    """How a forward multiplies with a weight, of experts or not: which row goes through which map.

    Attributes:
        base: inputs (..., fan_in) -> (..., fan_out) by the base's weight, as the forward asked for it (bias included).
    """

    base: Callable[[torch.Tensor], torch.Tensor]

    @abstractmethod
    def times(self, inputs: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """Return inputs (..., k) times the transpose of each row's matrix; `matrix` is (experts, n, k) or (n, k)."""

    @abstractmethod
    def vector(self, vector: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return each row's vector, to be multiplied with (..., n); `vector` is (experts, n) or (n)."""


@dataclass(frozen=True)
class OneMap(Product):
    """All rows go through one map: that of the expert `index`, or the only one there is."""

    index: int | torch.Tensor | None

    def times(self, inputs: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, matrix[self.index] if matrix.dim() == 3 else matrix)

    def vector(self, vector: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return vector[self.index] if vector.dim() == 2 else vector


@dataclass(frozen=True)
class Gathered(Product):
    """Inputs (n, rows, k), each of the n with its own expert: `index`, or all of them in order for None."""

    index: torch.Tensor | None

    def times(self, inputs: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        if matrix.dim() == 2:
            return F.linear(inputs, matrix)
        chosen = matrix if self.index is None else matrix[self.index]
        return torch.bmm(inputs, chosen.mT)

    def vector(self, vector: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        if vector.dim() == 1:
            return vector
        return (vector if self.index is None else vector[self.index]).unsqueeze(1)


@dataclass(frozen=True)
class Grouped(Product):
    """Inputs (rows, k), sorted by expert; `multiply(inputs, (experts, k, n))` is the forward's own grouped product.

    Attributes:
        multiply: the grouped product.
        ends: (experts), where each expert's rows end.
    """

    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ends: torch.Tensor

    def times(self, inputs: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        if matrix.dim() == 2:
            return F.linear(inputs, matrix)
        # Kernels want rows of whole 16 bytes, and a rank may be anything.
        wide, high = (-size % (16 // matrix.element_size()) for size in (matrix.shape[2], matrix.shape[1]))
        matrix = F.pad(matrix, (0, wide, 0, high)) if wide or high else matrix
        inputs = F.pad(inputs, (0, wide)) if wide else inputs
        product = self.multiply(inputs.contiguous(), matrix.mT)
        return product[:, : product.shape[1] - high] if high else product

    def vector(self, vector: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        if vector.dim() == 1:
            return vector
        row = torch.arange(len(inputs), device=self.ends.device, dtype=self.ends.dtype)
        # Rows after the last expert's belong to none; what they hold is not defined, as in the base's product.
        return vector[torch.searchsorted(self.ends, row, right=True).clamp_(max=len(vector) - 1)]


def through(chain: Sequence[Factored], inputs: torch.Tensor, product: Product) -> torch.Tensor:
    """Return the output of the weight with every link of `chain` in it, in that order.

    Args:
        chain: links in canonical order.
        inputs: (..., fan_in).
        product: how the forward multiplies.
    """
    return _through(_groups(chain), inputs, product)


def _groups(chain: Sequence[Factored]) -> list[list[Factored]]:
    """Neighbours that are parts of one weight and alike go together: one dropout mask and one product for them."""
    groups = [list(chain[:1])]
    for before, link in pairwise(chain):
        alike = _adds_alike(before, link) and before.site.slice and link.site.slice and before.site.key < link.site.key
        groups[-1].append(link) if alike else groups.append([link])
    return groups


def _adds_alike(left: Factored, right: Factored) -> bool:
    one, other = left.factors, right.factors
    if one.up is None or other.up is None or one.rows is not None or other.rows is not None:
        return False
    same = (one.scale, one.dropout, left.training) == (other.scale, other.dropout, right.training)
    return same and one.up.dim() == other.up.dim() and one.up.dtype == other.up.dtype


def _through(groups: list[list[Factored]], inputs: torch.Tensor, product: Product) -> torch.Tensor:
    if not groups:
        return product.base(inputs)
    *before, last = groups
    first = last[0].factors
    scaled = inputs
    if first.columns is not None:
        scaled = (inputs * product.vector(first.columns, inputs)).to(inputs.dtype)
    output = _through(before, scaled, product)
    if first.rows is not None:
        rows = _spread_rows(last[0].site, first.rows, output.shape[-1])
        output = (output * product.vector(rows, inputs)).to(output.dtype)
    return output if first.up is None else _add(last, inputs, output, product)


def _spread_rows(site: Site, rows: torch.Tensor, features: int) -> torch.Tensor:
    """Lay a part's factors among ones."""
    if site.slice is None:
        return rows
    index = torch.tensor(site.slice.indices(), device=rows.device)
    return rows.new_ones(*rows.shape[:-1], features).index_copy(-1, index, rows)


def _add(group: list[Factored], inputs: torch.Tensor, output: torch.Tensor, product: Product) -> torch.Tensor:
    first = group[0].factors
    assert first.up is not None
    kind = inputs.device.type
    # Grouped products do not follow autocast by themselves; all others would compute in this dtype, too.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else first.up.dtype
    x = inputs.to(dtype)
    if first.dropout and group[0].training:
        x = F.dropout(x, first.dropout)
    downs = [link.factors.down.to(dtype) for link in group if link.factors.down is not None]
    low = product.times(x, downs[0] if len(downs) == 1 else torch.cat(downs, dim=-2))
    ups = [(link.site, link.factors.up.to(dtype)) for link in group if link.factors.up is not None]
    up = ups[0][1] if group[0].site.slice is None else spread_parts(ups, output.shape[-1])
    added = product.times(low, up)
    return output + (added if first.scale == 1 else added * first.scale).to(output.dtype)
