"""Buffers that are used again: a block's intermediate results never leave the cache, and nothing is allocated."""

from __future__ import annotations

import math
import threading

import torch

__all__ = ["scratch"]

_OWN = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return this thread's buffer `name`, with whatever it holds; the next call with this name returns it again."""
    buffers: dict[tuple[str, torch.dtype], torch.Tensor] = _OWN.__dict__.setdefault("buffers", {})
    count = math.prod(shape)
    buffer = buffers.get((name, dtype))
    if buffer is None or buffer.numel() < count:
        buffer = buffers[name, dtype] = torch.empty(count, dtype=dtype)
    return buffer[:count].view(shape)
