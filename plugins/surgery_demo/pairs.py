"""Pairs for a retrieval probe: what a docstring says first, and what it says next."""

from __future__ import annotations

import re

from surgery_demo.corpora import SPLITS, torch_docstrings
from surgery_demo.sources import digest

_ALL = 1 << 30


def torch_pairs(seed: int = 0, *, test: int = 200) -> dict[str, list[dict[str, str]]]:
    """The first paragraph of a torch docstring as `query`, the next one of prose as `passage`; one split, "test".

    No paragraph occurs twice, so each query has one right passage. `test` is an upper bound in rows; empty where torch
    is not installed.
    """
    if test < 0:
        raise ValueError(f"a size must not be negative: test={test}")
    splits = torch_docstrings(0, train=_ALL, validation=_ALL, test=_ALL)
    pairs: list[dict[str, str]] = []
    seen: set[str] = set()
    for row in (row for split in SPLITS for row in splits[split]):
        paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", row["text"])]
        prose = [part for part in paragraphs[1:] if _is_prose(part, 12)]
        if not prose or not _is_prose(paragraphs[0], 5):
            continue
        query, passage = paragraphs[0], prose[0]
        if seen.isdisjoint((query.casefold(), passage.casefold())) and query.casefold() != passage.casefold():
            seen.update((query.casefold(), passage.casefold()))
            pairs.append({"query": query, "passage": passage})
    pairs.sort(key=lambda pair: digest(f"pairs {seed}", pair["query"]))
    return {"test": pairs[:test]}


def _is_prose(text: str, words: int) -> bool:
    marks = (">>>", ".. ", "Args:", "Returns:", "Example", "Shape:", "Keyword", ":", "*", "-")
    return len(text.split()) >= words and not text.startswith(marks) and sum(map(str.isalpha, text)) >= 0.65 * len(text)
