"""Approximate products with rigorous bounds, and exact sums for single elements.

The bounds are the textbook ones: a product of k terms that is summed in any order, with or without FMA, is off by at
most k*u / (1 - k*u) times the sum of the terms' magnitudes (Higham, Accuracy and Stability of Numerical Algorithms,
2002, section 3.1), and that sum is at most the product of two norms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch

from surgery.exact.product import Product
from surgery.exact.slices import spans

__all__ = ["Approximation"]

_SLACK = 1.0 + 2.0**-10
"""Covers the roundings of the bounds themselves, and that of (k + 4) * u against k * u / (1 - k * u)."""


class Approximation:
    """One product that stands for all: [scale * up, ...] @ [down; ...], in float32 and in float64.

    Attributes:
        length: the sum of all ranks.
        row_norm: (out), float64, at least the norm of each row of the joined `up`.
        column_norm: (in), float64, likewise for columns of the joined `down`.
        zero_rows: (out), numpy: rows to which nothing is added.
        prefers_wide: whether float64 was found to be faster here, as it leaves fewer elements undecided. Only a hint.
    """

    def __init__(self, products: tuple[Product, ...], shape: tuple[int, int]) -> None:
        self._products = products
        ups = [product.up.double() * product.scale for product in products] or [torch.zeros(shape[0], 0).double()]
        downs = [product.down.double() for product in products] or [torch.zeros(0, shape[1]).double()]
        self.up = torch.cat(ups, 1)
        self.down = torch.cat(downs, 0)
        self.length = self.up.shape[1]
        self.row_norm = torch.linalg.vector_norm(self.up, dim=1) * _SLACK
        self.column_norm = torch.linalg.vector_norm(self.down, dim=0) * _SLACK
        are_powers = all(math.frexp(abs(product.scale))[0] in {0.0, 0.5} for product in products)
        room = 53 - max(self.length - 1, 0).bit_length()
        # A scale that is no power of two was rounded into `up`, which is then no exact factor.
        self._row_room = room - spans(self.up, 1) if are_powers else torch.full((shape[0],), -1)
        self._column_span = spans(self.down, 0)
        self._widest_column = int(self._column_span.amax()) if shape[1] else 0
        self.prefers_wide = False
        self.zero_rows = (self.row_norm == 0).numpy()

    def is_exact(self, rows: slice) -> bool:
        """Whether the float64 product has no error in these rows, as where adapters are kept in 16 bits."""
        return bool((self._row_room[rows] >= self._widest_column).all())

    def error(self, unit: float, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return how far a product of these norms can be off where arithmetic has the unit roundoff `unit`."""
        bound: torch.Tensor = rows * columns * self._share(unit)
        return bound

    def _share(self, unit: float) -> float:
        return (self.length + 4) * unit * _SLACK

    @cached_property
    def dots(self) -> tuple[Any, Any, tuple[Any, Any], tuple[Any, Any], float]:
        """Return, for products of single elements as `at` has them, numpy's views of all that it takes.

        `up`, `down_rows`; norms of rows and columns, and the share of their product that is the error; and bits that a
        row leaves and a column takes: where they fit there is no error.
        """
        norms = self.row_norm.numpy(), self.column_norm.numpy()
        rooms = self._row_room.numpy(), self._column_span.numpy()
        return self.up.numpy(), self.down_rows.numpy(), norms, rooms, self._share(2.0**-53)

    @cached_property
    def largest_column(self) -> torch.Tensor:
        return self.column_norm.amax() if self.column_norm.numel() else torch.zeros(()).double()

    @cached_property
    def single(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the factors in float32, and the error (out, 1) of their float32 product, in float32."""
        up, down = self.up.float(), self.down.float()
        error = self.error(2.0**-24, self.row_norm, self.largest_column)
        # What may be lost below the normal range, in each term and in rounding the factors.
        edge = float(self.up.abs().amax() + self.down.abs().amax()) if self.up.numel() and self.down.numel() else 0.0
        error += self.row_norm.sign() * ((self.length + 4) * 2.0**-125 * (1.0 + edge))
        return up, down, (error * _SLACK).float().unsqueeze(1)

    @cached_property
    def wide(self) -> torch.Tensor:
        """Return the error (out, 1) of the float64 product, in float64; above 0 where a row of `up` is not zero."""
        error = self.error(2.0**-53, self.row_norm, self.largest_column)
        # A zero that comes out of nothing but zeros may have to be -0: it must stay undecided.
        bound: torch.Tensor = error + self.row_norm.sign() * 2.0**-1000
        return bound.unsqueeze(1)

    @cached_property
    def down_rows(self) -> torch.Tensor:
        """Columns of `down` as rows, (in, length)."""
        return self.down.T.contiguous()

    def at(self, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return approximations and errors, float64, of the elements (rows[i], columns[i])."""
        value = (self.up[rows] * self.down_rows[columns]).sum(1)
        error = self.error(2.0**-53, self.row_norm[rows], self.column_norm[columns])
        return value, torch.where(self._row_room[rows] >= self._column_span[columns], 0.0, error)

    def exactly(
        self, base: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, *, odd: bool = True
    ) -> tuple[list[float], list[bool]]:
        """Return base[i] + the exact sum at (rows[i], columns[i]), as float64; and where exactly zero is added.

        With `odd` what is not a float64 is rounded to the neighbour with an odd last bit, so that rounding once more,
        to fewer bits, is right; otherwise to the nearest.

        Every term is split into numbers of float64 without a rounding, and `math.fsum` rounds their sum once.
        """
        terms = torch.cat([base.unsqueeze(1), *self._terms(rows, columns)], 1).tolist()
        sums, stays = [], []
        for own, *others in terms:
            stays.append(math.fsum(others) == 0.0)
            sums.append(own if stays[-1] else (_to_odd if odd else math.fsum)([own, *others]))
        return sums, stays

    def _terms(self, rows: torch.Tensor, columns: torch.Tensor) -> Iterable[torch.Tensor]:
        for product in self._products:
            up, down = product.up[rows].double(), product.down.T[columns].double()
            parts = [up * down] if product.is_short else list(_two_product(up, down))
            for part in parts:
                if abs(math.frexp(product.scale)[0]) == 0.5:
                    yield part * product.scale
                else:
                    yield from _two_product(part, torch.full_like(part, product.scale))


def _two_product(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return left * right as an unevaluated sum of two float64 (Dekker, Numerische Mathematik 18, 1971)."""
    high = left * right
    (a, b), (c, d) = _split(left), _split(right)
    return high, ((a * c - high) + a * d + b * c) + b * d


def _split(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scaled = value * 134217729.0
    high = scaled - (scaled - value)
    return high, value - high


def _to_odd(terms: list[float]) -> float:
    total = math.fsum(terms)
    rest = math.fsum([*terms, -total])
    if rest == 0.0 or math.frexp(total)[0] * 2.0**53 % 2.0 == 1.0:
        return total
    return math.nextafter(total, math.copysign(math.inf, rest))
