"""One model class of transformers, to be built tiny."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Family"]


@dataclass(frozen=True)
class Family:
    """One model class of transformers with options of its configuration.

    Attributes:
        kind: its `model_type`.
        cls: the model class.
        config: settings beside those that all classes of the type share.
        note: what tells it from the same class with other settings.
        silent: names of parameters that a forward never reads.
        other: names of parameters that no role of the vocabulary fits.
        renamed: whether its files call parameters by other names than its modules do, so that headers tell other sites.
        batch: makes what the model is called with from the usual ids and mask.
    """

    kind: str
    cls: str
    config: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    silent: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    renamed: bool = False
    batch: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None

    def __str__(self) -> str:
        return f"{self.cls}{'-' if self.note else ''}{self.note}"
