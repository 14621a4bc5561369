"""Whose adapter failed: errors name the class, the adapter type, and the distribution that supplied it."""

from __future__ import annotations

from collections.abc import Iterable

from surgery.adapter import Adapter
from surgery.errors import PluginError, SurgeryError

__all__ = ["ORIGIN", "failure", "named"]

ORIGIN = "_surgery_origin"
"""The attribute in which a built adapter carries its origin, such as `adapter 'lora' (my-dist 0.1)`."""


def named(adapters: Iterable[Adapter]) -> str:
    """Return these adapters' types, distributions and classes, each once."""
    found = ((vars(adapter).get(ORIGIN, ""), type(adapter).__name__) for adapter in adapters)
    return ", ".join(dict.fromkeys(f"{origin}, class {cls}" if origin else cls for origin, cls in found))


def failure(method: str, adapter: Adapter, where: str, error: Exception) -> Exception:
    """Return what to raise where `method` of `adapter` raised `error`: a PluginError, or the error itself.

    What torch defines is no fault of a plugin: memory that is used up, the control flow of checkpointing and tracing.
    """
    if isinstance(error, SurgeryError | MemoryError) or type(error).__module__.partition(".")[0] == "torch":
        return error
    return PluginError(
        f"{method} failed: {type(error).__name__}: {error}",
        f"{named([adapter])} on {where}",
        "repair the adapter type, or tell its authors",
    )
