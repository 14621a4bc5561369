"""Names of files in a checkpoint: they stay inside the folder, and never meet those that the protocol uses."""

from __future__ import annotations

from surgery.errors import CheckpointError

__all__ = ["JOURNAL", "RECEIPT", "WORK", "check_name", "staging_name"]

RECEIPT = "surgery-receipt.json"
"""Says which job wrote the folder."""
WORK = ".surgery"
"""The folder of a commit under way, inside the folder that it replaces files of."""
JOURNAL = "journal"
"""In WORK: the commit is decided, and lists what has to be renamed."""
_DEEPEST = 8


def staging_name(name: str) -> str:
    """The entry beside a new folder `name` that becomes that folder."""
    return f".{name}.surgery"


def check_name(name: str, where: str, *, nested: bool = False) -> tuple[str, ...]:
    """Return the parts of a relative file name: one, or several where `nested`.

    Raises:
        CheckpointError: it leaves the folder, is one of the protocol's own, or cannot be a file name.
    """
    parts = tuple(name.split("/"))
    is_bad = any(
        part in ("", ".", "..") or len(part.encode("utf-8", "surrogatepass")) > 255 or not part.isprintable()
        for part in parts
    )
    if is_bad or "\\" in name or len(parts) > (_DEEPEST if nested else 1):
        raise CheckpointError(f"{name[:300]!r} is no name of a file in this folder", where, "use a plain file name")
    if parts[0] == RECEIPT or parts[0].startswith(WORK):
        raise CheckpointError(f"{name!r} is a name that the commit itself uses", where, "choose another name")
    return parts
