"""Fingerprints of what a run starts from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

__all__ = ["tensors_hash", "tokenizer_hash"]


def tensors_hash(model: nn.Module, *, only: Collection[str] | None = None, without: Collection[str] = ()) -> str:
    """Return the sha256 of names, dtypes, shapes and bits of the parameters `only` (all) except `without`."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if name in without or (only is not None and name not in only):
            continue
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        bits = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(bits.numpy().data)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Return the sha256 of what decides a tokenizer's output."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return hashlib.sha256(f"{text}\n{special}".encode()).hexdigest()
