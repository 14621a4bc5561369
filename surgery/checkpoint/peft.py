"""Adapters that PEFT has saved."""

from __future__ import annotations

from pathlib import Path

__all__ = ["is_peft"]


def is_peft(folder: Path) -> bool:
    """Whether the folder says that PEFT wrote it."""
    return (folder / "adapter_config.json").is_file()
