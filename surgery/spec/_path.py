"""The path of a value in a document, as users read it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["path_text"]


def path_text(path: Sequence[str | int]) -> str:
    """Return `path` as users read it.

    >>> path_text(("arms", "my arm", "rules", 0, "rank"))
    'arms["my arm"].rules[0].rank'
    """
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.replace("-", "_").isidentifier():
            text += f".{step}" if text else step
        else:
            shown = step if len(step) <= 40 else step[:37] + "..."
            text += '["' + shown.replace('"', '\\"') + '"]'
    return text
