"""How many tokens a model takes."""

from __future__ import annotations

from typing import Any

__all__ = ["most_positions"]


def most_positions(model: Any) -> int | None:
    """Return the longest sequence that `model` has positions for; None where its configuration names no limit."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int):
        return None
    for name, module in model.named_modules():
        # Where padding has a position of its own (RoBERTa), counting begins after it.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return most - int(module.padding_idx) - 1
    return most
