"""Names of one model's parameters in two places: a base model and a model with a head differ by a prefix."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["aligned"]


def aligned(ours: Collection[str], theirs: Collection[str]) -> dict[str, str]:
    """Return ours -> theirs: the same names, or with one prefix more or fewer, as base models are kept in files."""
    best = {name: name for name in ours if name in theirs}
    for prefix in sorted({f"{name.partition('.')[0]}." for name in (*theirs, *ours)}):
        longer = {name: prefix + name for name in ours if prefix + name in theirs}
        shorter = {
            name: name.removeprefix(prefix)
            for name in ours
            if name.startswith(prefix) and name.removeprefix(prefix) in theirs
        }
        for change in (longer, shorter):
            taken = set(change.values())
            same = {name: name for name in ours if name in theirs and name not in change and name not in taken}
            if len(change) + len(same) > len(best):
                best = change | same
    return best
