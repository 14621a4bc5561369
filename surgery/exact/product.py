"""One low-rank product of an adapter, as plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from surgery.errors import StateError

__all__ = ["Product"]

_LARGEST_ENTRY = 2.0**200
_LARGEST_SCALE = 2.0**400
"""Between 1/x and x no product of entries and scale, nor its last bit, leaves the range of float64."""


@dataclass(frozen=True, eq=False)
class Product:
    """`scale * up @ down`, to be added to a weight.

    Attributes:
        up: (out, r), float64, float32, bfloat16, float16 or a float8.
        down: (r, in), likewise.
        scale: a float64.

    Raises:
        StateError: shapes that do not fit, a dtype that is not floating point, NaN or inf, or numbers so large or so
            small (2**200 for entries, 2**400 for the scale, and their inverses) that float64 could not tell products.
    """

    up: torch.Tensor
    down: torch.Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", float(self.scale))
        if self.up.dim() != 2 or self.down.dim() != 2 or self.up.shape[1] != self.down.shape[0]:
            shapes = f"{list(self.up.shape)} and {list(self.down.shape)}"
            raise StateError(f"factors of shapes {shapes} have no product", hint="up is (out, r) and down is (r, in)")
        for name, factor in (("up", self.up), ("down", self.down)):
            object.__setattr__(self, name, _checked(name, factor))
        size = abs(self.scale)
        if not math.isfinite(size) or (size != 0 and not 1 / _LARGEST_SCALE <= size <= _LARGEST_SCALE):
            raise StateError(f"the adapter's scale is {self.scale}", hint="nothing was merged; choose a finite scale")

    @property
    def rank(self) -> int:
        """The inner size of the product."""
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the product: (out, in)."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def is_short(self) -> bool:
        """Whether a product of two entries always fits float64: both have at most 24 bits."""
        return torch.float64 not in (self.up.dtype, self.down.dtype)


def _checked(name: str, factor: torch.Tensor) -> torch.Tensor:
    if not factor.is_floating_point():
        raise StateError(f"the adapter's tensor {name!r} is {factor.dtype}", hint="factors are floating point")
    factor = factor.detach().cpu()
    if factor.element_size() == 1:
        factor = factor.float()
    finite = torch.isfinite(factor)
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise StateError(f"the adapter's tensor {name!r} holds NaN or inf", f"row {row}, column {column}", _NOTHING)
    if factor.dtype == torch.float64:
        size = factor.abs()
        if bool(((size > _LARGEST_ENTRY) | ((size > 0) & (size < 1 / _LARGEST_ENTRY))).any()):
            raise StateError(
                f"the adapter's tensor {name!r} holds numbers beyond 2**200 or nearer to zero than 2**-200",
                hint=_NOTHING,
            )
    return factor


_NOTHING = "nothing was merged; repair the adapter"
