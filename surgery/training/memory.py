"""Memory by component, counted from the tensors themselves: the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from surgery.training.seeds import preserved_randomness

__all__ = ["optimizer_bytes", "saved_activation_bytes", "storage_bytes"]


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the storages behind `tensors`, each storage once."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def optimizer_bytes(optimizer: Any) -> int:
    """Return the bytes of the optimizer's state tensors."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return storage_bytes(
        value for state in inner.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    )


def saved_activation_bytes(
    model: nn.Module, compute_loss: Callable[[Mapping[str, Any]], torch.Tensor], batch: Any
) -> int:
    """Return the bytes that the forward pass of `batch` saves for its backward pass, parameters not counted.

    The pass is thrown away: no gradient, no random draw and no buffer of it stays.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            # The storage is kept, so that no later one can have its address.
            saved[storage.data_ptr()] = storage
        return tensor

    was_training = model.training
    model.train()
    try:
        with preserved_randomness(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = compute_loss(batch)
        del loss
    finally:
        model.train(was_training)
    return sum(storage.nbytes() for storage in saved.values())
