"""Small models built like a given one, on which its layers are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Twin", "Twins"]


@dataclass(frozen=True)
class Twin:
    """A small model of the same class as another one: every name but a layer's number is the other's.

    Attributes:
        model: in float64 and evaluation mode, on the CPU, with random weights, attention and experts written out as
            plain products.
        batch: (seed, size) -> keyword arguments of its forward: `size` equal examples of at least five positions.
            Another seed gives other examples of the same lengths, without padding.
        settings: its sizes, by the names of its configuration.
    """

    model: nn.Module
    batch: Callable[[int, int], Mapping[str, Any]]
    settings: Mapping[str, int]


@dataclass(frozen=True)
class Twins:
    """At least two twins of one model, whose sizes differ.

    Attributes:
        models: the twins.
        names: what the layout of a fused weight is counted in -> the configuration's name for it, or an expression of
            such names: `heads`, `groups` (of keys and values, where they are fewer), `head` (width of one head).
        settings: the model's own sizes by these names.
    """

    models: tuple[Twin, ...]
    names: Mapping[str, str]
    settings: Mapping[str, int]
