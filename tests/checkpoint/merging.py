"""What the tests of merged checkpoints share: small bases, adapters on them, and comparison of folders by bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from families import build
from operating import LORA, REGISTRY, move, planned
from safetensors.torch import load_file

from surgery import Operation, operate
from surgery.checkpoint import RECEIPT

__all__ = ["MIXED", "SHARDS", "base_of", "bytes_of", "saved", "tensors"]

MIXED: tuple[dict[str, Any], ...] = (
    {"role": r"(attention\.(query|value|output)|mlp\..*|moe\.experts\..*)", **LORA},
    {"role": r"norm\..*", "adapter": "full"},
    {"role": r"attention\.key", "adapter": "ia3"},
)
"""LoRA, replaced parameters, and factors, on one model."""
SHARDS = "9KB"
"""Small enough that the tiny models become several files with an index."""


def base_of(folder: Path, family: str, dtype: torch.dtype, shard: str = SHARDS, **config: Any) -> torch.nn.Module:
    """Save a tiny model, and return it."""
    model, _ = build(family, **config)
    model = model.to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text("{}")
    return model


def saved(model: torch.nn.Module, folder: Path, *rules: dict[str, Any], seed: int = 0, scale: float = 0.1) -> Operation:
    """Operate, move, save; return the operation, unmerged."""
    op = operate(model, planned(model, *(rules or MIXED)), registry=REGISTRY)
    move(op, seed, scale)
    op.save(folder)
    return op


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Return the folder's files by name, the receipt and what surgery keeps left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECEIPT and path.relative_to(folder).parts[0] != "surgery"
    }


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of all files, as bytes."""
    return {
        name: tensor.contiguous().flatten().view(torch.uint8)
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
