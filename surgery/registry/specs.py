"""Loading specs against what is installed, so that adapter and task options are checked with the rest."""

from __future__ import annotations

from pathlib import Path

from surgery.registry.load import load_registry
from surgery.registry.registry import Registry
from surgery.spec import Spec
from surgery.spec import load_spec as load_core_spec

__all__ = ["load_spec"]


def load_spec(path: str | Path, registry: Registry | None = None) -> Spec:
    """Read a spec file, checked against the installed plugins.

    Raises:
        SpecError: every problem of the file at once, each with file:line:col and a hint.
    """
    return load_core_spec(Path(path), registry or load_registry())
