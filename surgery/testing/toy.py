"""A toy model that has every kind of host: embedding, norm, linear, Conv1D with fused slices, and a tied head."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from surgery.adapter import AdapterType
from surgery.architecture import Architecture, Slice
from surgery.operation import Operation
from surgery.registry import Provenance, Registered, Registry

__all__ = ["TOY", "ToyModel", "perturb", "toy_registry"]

VOCABULARY = 11
WIDTH = 6


def _third(start: int) -> Slice:
    return Slice("*.fused", view=(3, -1), start=start, axis=1)


TOY = Architecture(
    types=("surgery-toy",),
    base="body",
    stacks={"decoder": "layers"},
    roles={
        "embedding.token": "embedding",
        "norm.attention.pre": "*.norm",
        "attention.query": _third(0),
        "attention.key": _third(1),
        "attention.value": _third(2),
        "attention.output": "*.output",
        "mlp.up": "*.up",
        "mlp.down": "*.down",
    },
    heads={"head.lm": "head"},
)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.fused = Conv1D(3 * WIDTH, WIDTH)  # type: ignore[no-untyped-call]
        self.output = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = self.fused(self.norm(hidden)).chunk(3, dim=-1)
        hidden = hidden + self.output(torch.sigmoid(query * key) * value)
        result: torch.Tensor = hidden + self.down(torch.tanh(self.up(hidden)))
        return result


class _Body(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(_Layer() for _ in range(layers))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.embedding(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class ToyModel(nn.Module):
    """ids (batch, length) of int64 -> logits (batch, length, vocabulary). The head is tied to the embedding.

    Args:
        layers: number of layers.
        dtype: dtype of every parameter.
        seed: seed of the random weights.
    """

    def __init__(self, layers: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = _Body(layers)
            self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.5)
        self.head.weight = self.body.embedding.weight
        self.config = SimpleNamespace(model_type="surgery-toy")
        self.to(dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(ids))
        return logits

    @staticmethod
    def batch(seed: int = 0) -> torch.Tensor:
        """Return ids of shape (2, 5)."""
        return torch.randint(0, VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(seed))


def toy_registry(*adapters: AdapterType[Any]) -> Registry:
    """Return a registry that knows these adapter types and the toy architecture."""
    here = Provenance("toy", "surgery.testing", "")
    return Registry(
        adapters={kind.name: Registered(kind, here) for kind in adapters},
        architectures={"surgery-toy": Registered(TOY, here)},
        models={},
        datasets={},
        tasks={},
    )


def perturb(op: Operation, seed: int) -> None:
    """Move every trainable tensor, as training would, deterministically."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(op.trainable().items()):
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.dtype))
