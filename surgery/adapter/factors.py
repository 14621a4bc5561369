"""What an adapter makes of a linear map, said by small tensors instead of a whole weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Factors"]


@dataclass(frozen=True)
class Factors:
    """W' = diag(rows) W diag(columns) + scale * up @ down; what is None has no part in it.

    From this a forward gets y = rows * W (columns * x) + scale * up (down x), without any tensor of the weight's size.
    In a weight of experts each tensor may have a first axis for the experts, or be one for all of them.

    Attributes:
        down: (..., rank, fan_in), floating point.
        up: (..., fan_out, rank); `down` and `up` come together.
        scale: factor of `up @ down`.
        dropout: share of the numbers of x that `down` does not see in training. `fold` knows nothing of it.
        rows: (..., fan_out).
        columns: (..., fan_in). Not for parts of a fused weight: they share their input.
    """

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    scale: float = 1.0
    dropout: float = 0.0
    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None

    def fold(self, weight: torch.Tensor) -> torch.Tensor:
        """Return W' for W = `weight`, (..., fan_out, fan_in); in its dtype, or that of the factors where it is wider.

        Use it as the body of `Adapter.fold`, so that both say the same.
        """
        if self.rows is not None:
            weight = weight * _wide(self.rows, weight).unsqueeze(-1)
        if self.columns is not None:
            weight = weight * _wide(self.columns, weight).unsqueeze(-2)
        if self.up is None or self.down is None:
            return weight
        return weight + self.scale * (_wide(self.up, weight) @ _wide(self.down, weight))

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors that have a part in it."""
        return tuple(t for t in (self.down, self.up, self.rows, self.columns) if t is not None)


def _wide(tensor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(weight.dtype, tensor.dtype))
