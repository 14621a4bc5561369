"""Tiny models, their tokenizers, texts and studies: everything is real but the size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surgery.study import StudySpec

WORDS = [
    "the",
    "a",
    "good",
    "bad",
    "fine",
    "poor",
    "film",
    "book",
    "plot",
    "scene",
    "was",
    "is",
    "very",
    "not",
    "really",
    "great",
    "awful",
    "slow",
    "bright",
    "dull",
]
HEAD = {"head": [{"role": r"head\..*", "adapter": "full"}], "head_learning_rate": 5e-3}


def write_rows(path: Path, count: int, start: int) -> None:
    rows = []
    for index in range(start, start + count):
        words = [WORDS[(index * 7 + place * 3) % len(WORDS)] for place in range(4 + index % 5)]
        words.insert(index % 3, "great" if index % 2 else "awful")
        # Spelt out, so that no text is in two splits.
        words += [WORDS[index // 400], WORDS[index // 20 % 20], WORDS[index % 20]]
        rows.append({"text": " ".join(words), "label": "good" if index % 2 else "bad"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def save_tokenizer(folder: Path, special: list[str], **names: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **names).save_pretrained(folder)


def bert_study(model: str, data: dict[str, str], **changes: Any) -> StudySpec:
    keys: dict[str, Any] = {
        "name": "tiny-bert",
        "model": model,
        "task": {"kind": "text-classification", "max_length": 24},
        "data": data,
        "training": {"steps": 8, "batch_size": 8, "evaluate_every": 4},
        "seeds": [1, 2],
        **HEAD,
        "arms": {
            "full": {"rules": [{"role": ".*", "adapter": "full"}], "learning_rate": 3e-3},
            "lora": {
                "rules": [{"role": r"attention\..*", "adapter": "lora", "rank": 2}],
                "learning_rate": [1e-3, 1e-2],
            },
        },
        "reference": "full",
        "margin": 0.02,
        "resamples": 1000,
        "extend_grids": 0,
    }
    return StudySpec(**{**keys, **changes})
