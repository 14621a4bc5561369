"""A tokenizer of twenty words, rows that a small model can learn, and files of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["WORDS", "make_tokenizer", "sentences", "write_lines"]

WORDS = "the a good bad fine poor film book plot scene was is very not really great awful slow bright dull".split()  # noqa: SIM905


def make_tokenizer(special: Sequence[str], **names: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **names)


def sentences(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows whose label a model can learn: whether good words stand in the text."""
    rows = []
    for index in range(start, start + count):
        good = index % 2
        words = [WORDS[(index * 7 + place * 3) % len(WORDS)] for place in range(3 + index % 5)]
        words.insert(index % 3, "great" if good else "awful")
        rows.append({"text": " ".join(words) + f" {WORDS[index % len(WORDS)]}", "label": "good" if good else "bad"})
    return rows


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
