"""Tiny models of four families with a tokenizer each, made in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_folders import byte_tokenizer, save, word_tokenizer

from surgery.registry import Registry, load_registry


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only get into each other's way on tensors this small."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(scope="session")
def words() -> Any:
    """A word tokenizer with [CLS] and [SEP], as BERT has."""
    return word_tokenizer()


@pytest.fixture(scope="session")
def bytes_tokenizer() -> Any:
    """A byte-level tokenizer whose tokens begin with the space before them, and no special tokens, as GPT-2 has."""
    return byte_tokenizer()


@pytest.fixture(scope="session", params=["bert", "roberta", "distilbert", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny pretrained model without a task head."""
    return save(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("bert", tmp_path_factory.mktemp("models") / "bert")
