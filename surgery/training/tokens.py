"""How many tokens a model knows."""

from __future__ import annotations

from typing import Any

__all__ = ["known_tokens"]


def known_tokens(model: Any) -> int | None:
    """Return how many tokens `model` has an embedding for, or None where neither it nor its configuration says so."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):  # a class that keeps its embeddings elsewhere, or has none
        size = getattr(getattr(model, "config", None), "vocab_size", None)
        return size if type(size) is int else None
