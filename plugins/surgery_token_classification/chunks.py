"""Entities of a tagged sentence, and how many of them two taggings share."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["entities", "is_chunk_tag"]

OUTSIDE = "O"


def is_chunk_tag(tag: str) -> bool:
    """Whether `tag` is O, or B- or I- and a type."""
    prefix, dash, kind = tag.partition("-")
    return tag == OUTSIDE or (prefix in ("B", "I") and bool(dash) and bool(kind))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return (type, first word, word after the last) of every entity.

    IOB2 (Ramshaw and Marcus 1995, arXiv cmp-lg/9505040; Tjong Kim Sang and Veenstra 1999, arXiv cs/9907006): B- begins
    an entity, I- of the same type goes on with it. A model may say I- where nothing of its type goes on: that begins
    an entity, too, as in the evaluation of CoNLL-2003 (Tjong Kim Sang and De Meulder 2003, arXiv cs/0306050), which
    also reads the older IOB1 rightly.
    """
    found: set[tuple[str, int, int]] = set()
    kind, start = "", -1
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, name = tag.partition("-")
        if start >= 0 and not (prefix == "I" and name == kind):
            found.add((kind, start, place))
            start = -1
        if start < 0 and prefix in ("B", "I"):
            kind, start = name, place
    return found
