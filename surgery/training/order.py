"""The order in which training examples are seen: it depends on the seed and the number of examples alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from surgery.training.collate import length
from surgery.training.seeds import generator

__all__ = ["Order"]


class Order(Dataset[Mapping[str, Any]]):
    """All examples of a run in the order they are seen, epoch after epoch, each a new permutation.

    The Trainer sees it as one long data set that is read once, from front to back: nothing is shuffled later, so
    neither adapters nor the number of workers can change the order, and resuming is skipping.
    """

    def __init__(self, examples: Sequence[Mapping[str, Any]], steps: int, batch: int, seed: int) -> None:
        self._examples = examples
        self._batch = batch
        needed, count = steps * batch, len(examples)
        epochs = [
            torch.randperm(count, generator=generator(seed, "order", epoch))
            for epoch in range(math.ceil(needed / count))
        ]
        self.indices: list[int] = torch.cat(epochs)[:needed].tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        return self._examples[self.indices[position]]

    @property
    def hash(self) -> str:
        """sha256 of the order."""
        return hashlib.sha256(",".join(map(str, self.indices)).encode()).hexdigest()

    def prefixes(self) -> tuple[str, ...]:
        """Return the first 16 digits of the sha256 of the first 1, 2, 4, 8, ... indices.

        Two orders of different lengths agree as far as the shorter one goes exactly if these agree as far as it goes.
        """
        found, count = [], 1
        while count <= len(self.indices):
            text = ",".join(map(str, self.indices[:count]))
            found.append(hashlib.sha256(text.encode()).hexdigest()[:16])
            count *= 2
        return tuple(found)

    def tokens(self) -> list[int]:
        """Return the tokens seen after 0, 1, 2, ... steps, padding not counted."""
        seen = [0]
        for start in range(0, len(self.indices), self._batch):
            batch = self.indices[start : start + self._batch]
            seen.append(seen[-1] + sum(length(self._examples[index]) for index in batch))
        return seen
