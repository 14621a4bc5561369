"""Texts kept in files: `SURGERY_REGENERATE_GOLDEN=1` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["check_golden"]

_FOLDER = Path(__file__).parent / "golden"


def check_golden(name: str, text: str) -> None:
    """Compare `text` with what the file holds."""
    path = _FOLDER / f"{name}.txt"
    if os.environ.get("SURGERY_REGENERATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8"), f"SURGERY_REGENERATE_GOLDEN=1 writes {path.name} anew"
