"""Text from a user, quoted back to the user: as typed, and never too long for a line."""

from __future__ import annotations

__all__ = ["quoted"]


def quoted(text: str, limit: int = 40) -> str:
    """Return `text` in quotes, cut to `limit` characters; escapes appear only for what cannot be printed.

    >>> quoted("a|b")
    "'a|b'"
    """
    shown = text if len(text) <= limit else text[: limit - 3] + "..."
    # repr would double each backslash, which makes a regular expression look like another one.
    return f"'{shown}'" if shown.isprintable() else repr(shown)
