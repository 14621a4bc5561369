"""What adapters add to a weight: a sum of low-rank products, by rows, as the same bits wherever it is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from surgery.errors import StateError
from surgery.exact.bounds import Approximation
from surgery.exact.product import Product
from surgery.exact.scratch import scratch
from surgery.exact.slices import Sliced, sliced

__all__ = ["Delta"]


class Delta:
    """The sum of scale * up @ down over `products`, in their order.

    It does not change, and may be read by several threads at once.

    Attributes:
        products: one or more.
        shape: (out, in).
    """

    def __init__(self, products: Iterable[Product], shape: tuple[int, int]) -> None:
        """Make one.

        Raises:
            StateError: a product has another shape.
        """
        self.products = tuple(products)
        self.shape = (int(shape[0]), int(shape[1]))
        for product in self.products:
            if product.shape != self.shape:
                raise StateError(
                    f"an adapter of shape {list(product.shape)} does not fit a weight of shape {list(self.shape)}",
                    hint="nothing was merged",
                )

    def block(self, start: int, stop: int, correct: bool = True, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return rows start..stop as float64 (stop - start, in): the same bits on any machine, in any blocking.

        Args:
            start, stop: rows.
            correct: multiply all slices, which leaves only the roundings of a short sum of their exact products, and
                one for each scale; otherwise the first slice alone, with an error of about 2**-22 of a row's and a
                column's largest entries.
            out: where to put it.
        """
        rows, columns = stop - start, self.shape[1]
        if out is None:
            out = torch.empty(rows, columns, dtype=torch.float64)
        if not self.products or not rows or not columns:
            return out.zero_()
        term = out
        for index, product in enumerate(self.products):
            cuts = self._all_slices[index] if correct else self._first_slices[index]
            self._product(cuts, start, stop, term)
            if product.scale != 1.0:
                term.mul_(product.scale)
            if index:
                out.add_(term)
            if index + 1 < len(self.products) and not index:
                term = scratch("term", (rows, columns), torch.float64)
        return out

    def _product(self, cuts: Sliced, start: int, stop: int, out: torch.Tensor) -> None:
        # The smallest contribution comes first, so that the sum loses least.
        *larger, (left, right) = cuts.groups
        torch.mm(left[start:stop], right, out=out)
        for left, right in reversed(larger):
            part = scratch("slice", (stop - start, self.shape[1]), torch.float64)
            torch.mm(left[start:stop], right, out=part)
            out.add_(part)

    def error(self, *, correct: bool) -> npt.NDArray[Any]:
        """Return (out), float64: how far elements of each row of `block` may be from the exact sum; 0 for empty rows.

        A row of `up` below 2**e and a column of `down` below 2**f are on grids of 2**(e - beta) and 2**(f - beta). The
        first slices miss at most half a unit of either in each of the r terms: r * 2**(e + f - beta) together. All
        slices miss nothing. A product is at most r * 2**(e + f), and each step of summing some of them rounds by at
        most 2**-53 of that.
        """
        return self._whole_error if correct else self._first_error

    @cached_property
    def _whole_error(self) -> npt.NDArray[Any]:
        steps = sum(len(cuts.groups) + 2 for cuts in self._all_slices)
        return self._errors([steps * 2.0**-53] * len(self.products))

    @cached_property
    def _first_error(self) -> npt.NDArray[Any]:
        steps = 3 * len(self.products) * 2.0**-53
        return self._errors([2.0**-cuts.bits + steps for cuts in self._first_slices])

    def _errors(self, units: Iterable[float]) -> npt.NDArray[Any]:
        total = torch.zeros(self.shape[0], dtype=torch.float64)
        for product, unit in zip(self.products, units, strict=True):
            if not product.up.numel() or not product.down.numel():
                continue
            rows = product.up.double().abs().amax(1)
            column = product.down.double().abs().amax()
            # 2**e is at most twice the largest entry; the last factor covers the roundings of slices and of this line.
            total += rows * (4.0 * column * abs(product.scale) * product.rank * unit * (1.0 + 2.0**-5))
        return total.numpy()

    @cached_property
    def approximation(self) -> Approximation:
        """Fast products with rigorous bounds, for deciding how a sum rounds."""
        return Approximation(self.products, self.shape)

    @cached_property
    def _all_slices(self) -> tuple[Sliced, ...]:
        return tuple(self._cut(only_first=False))

    @cached_property
    def _first_slices(self) -> tuple[Sliced, ...]:
        return tuple(self._cut(only_first=True))

    def joined(self, *, correct: bool) -> tuple[Any, Any, Any, Any]:
        """Return what `block` multiplies, as numpy's arrays, side by side in the order of its sums.

        Left factors (out, k) and right ones (k, in); (m, 3): the terms at which a group begins and ends, and its
        product; and the scales of products. Groups are filled with zeros to multiples of four terms.
        """
        return self._whole_joined if correct else self._first_joined

    @cached_property
    def _whole_joined(self) -> tuple[Any, Any, Any, Any]:
        return self._join(self._all_slices)

    @cached_property
    def _first_joined(self) -> tuple[Any, Any, Any, Any]:
        return self._join(self._first_slices)

    def _join(self, slices: tuple[Sliced, ...]) -> tuple[Any, Any, Any, Any]:
        lefts, rights, groups, end = [], [], [], 0
        for index, cuts in enumerate(slices):
            for left, right in reversed(cuts.groups):
                begin, end = end, end + -(-left.shape[1] // 4) * 4
                groups.append((begin, end, index))
                missing = end - begin - left.shape[1]
                lefts.append(torch.nn.functional.pad(left, (0, missing)))
                rights.append(torch.nn.functional.pad(right, (0, 0, 0, missing)))
        scales = np.array([product.scale for product in self.products], np.float64)
        return torch.cat(lefts, 1).numpy(), torch.cat(rights).numpy(), np.array(groups, np.int64), scales

    def _cut(self, *, only_first: bool) -> Iterator[Sliced]:
        for product in self.products:
            yield sliced(product.up.double(), product.down.double(), only_first=only_first)
