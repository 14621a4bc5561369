"""The MODEL of a command line, checked before anything slow begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from surgery.errors import CheckpointError, nearest

if TYPE_CHECKING:
    from surgery.registry import Registry

__all__ = ["known_model"]

_MOST = 1000


def known_model(ref: str, registry: Registry) -> str:
    """Return `ref` when it exists here or when an installed source of models knows it.

    Raises:
        CheckpointError: neither; with the nearest names beside it.
    """
    if Path(ref).exists() or any(source.value.resolve(ref) is not None for source in registry.models.values()):
        return ref
    near = nearest(Path(ref).name, _beside(ref))
    if ":" in ref:
        near = nearest(ref, [name for source in registry.models.values() for name in source.value.names])
    hint = "give a folder with config.json, a config.json, a .safetensors file, or a model's name"
    raise CheckpointError(
        "there is no such model, folder or file", ref, near if near.startswith("did you mean") else hint
    )


def _beside(ref: str) -> list[str]:
    parent = Path(ref).expanduser().parent
    try:
        return [path.name for path in sorted(parent.iterdir())[:_MOST]]
    except OSError:
        return []
