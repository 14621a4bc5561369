"""Tensors that a checkpoint does not hold: drawn by name, so that every run of a seed begins alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from surgery.training.seeds import generator

__all__ = ["draw_heads"]


def draw_heads(model: Any, names: Iterable[str], seed: int) -> None:
    """Draw the named parameters in place: matrices normal(0, `initializer_range`), biases 0, other vectors 1.

    Each comes from its own generator, named by (seed, "head", parameter name): no other draw can move it.
    """
    parameters = dict(model.named_parameters())
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    deviation = float(getattr(config, "initializer_range", None) or 0.02)
    with torch.no_grad():
        for name in names:
            parameter = parameters[name]
            if parameter.ndim >= 2:
                values = torch.randn(parameter.shape, generator=generator(seed, "head", name)) * deviation
                parameter.copy_(values)
            elif name.rpartition(".")[2] == "bias":
                parameter.zero_()
            else:
                parameter.fill_(1.0)
