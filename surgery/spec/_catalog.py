"""What the spec needs to know about installed plugins: names, and the options each one takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from surgery.errors import SurgeryError
from surgery.spec._strict import Options

__all__ = ["Catalog", "Context"]


@runtime_checkable
class Catalog(Protocol):
    """The installed adapters and tasks by name. The registry is one; tests may use a small one of their own."""

    def adapter_names(self) -> Sequence[str]:
        """Return the names a rule's `adapter:` may have."""
        ...

    def adapter_options(self, name: str) -> type[Options]:
        """Return the options model of one adapter."""
        ...

    def task_names(self) -> Sequence[str]:
        """Return the names a task's `kind:` may have."""
        ...

    def task_options(self, name: str) -> type[Options]:
        """Return the options model of one task."""
        ...

    def failure(self, word: str, name: str, what: str) -> SurgeryError:
        """Return the error to raise where the `adapter` or `task` called `name` fails."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """What validation knows beside the data: the catalog, and whether the data come from a file."""

    catalog: Catalog | None = None
    from_file: bool = False
