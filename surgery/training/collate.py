"""Examples into batches: padded to the longest, tensors made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["Collator", "length"]

Example = Mapping[str, Any]
_IGNORED = -100


def length(example: Example) -> int:
    """Return how many tokens an example has."""
    return len(example["input_ids"])


class Collator:
    """Pads the lists of examples on the right: ids with the padding token, labels with -100, anything else with 0.

    Keys that begin with `_` are the task's own, and no tensors.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._filler = {"input_ids": pad_token_id, "labels": _IGNORED}

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return each key of the examples as a tensor: (batch, longest) of lists, (batch,) of numbers."""
        return {key: self._tensor(key, [example[key] for example in examples]) for key in examples[0] if key[0] != "_"}

    def _tensor(self, key: str, values: list[Any]) -> torch.Tensor:
        if not isinstance(values[0], list):
            return torch.tensor(values)
        longest = max(map(len, values))
        filler = self._filler.get(key, 0)
        return torch.tensor([value + [filler] * (longest - len(value)) for value in values])
