"""What an adapter computes beside its host, as numbers: all that a cost model needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one edit in a training step.

    Attributes:
        replaces: the host computes with a trainable tensor in place of its own parameter, which therefore needs a
            gradient of its full size; nothing is computed beside it.
        rank: inner width r of a product (x down^T) up^T that is added to the host's output; 0 where there is none.
        dropout: probability of a dropout on that product's input.
    """

    replaces: bool = False
    rank: int = 0
    dropout: float = 0.0
