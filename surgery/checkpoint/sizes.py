"""Sizes in words."""

from __future__ import annotations

__all__ = ["size_text"]


def size_text(count: int) -> str:
    """Return a number of bytes in words.

    >>> size_text(1_500_000)
    '1.5 MB'
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
