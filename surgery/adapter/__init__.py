"""How a weight is adapted: the two classes that adapter authors write."""

from typing import TYPE_CHECKING

from surgery.adapter.kind import AdapterType
from surgery.adapter.work import Work

if TYPE_CHECKING:
    from surgery.adapter.module import Adapter as Adapter

__all__ = ["Adapter", "AdapterType", "Work"]


def __getattr__(name: str) -> object:
    # `Adapter` is an nn.Module; plans are made without importing torch.
    if name == "Adapter":
        from surgery.adapter.module import Adapter

        return Adapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
