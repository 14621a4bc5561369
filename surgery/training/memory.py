"""Memory by component and work of a step, counted from the tensors and the operations themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from surgery.training.seeds import preserved_randomness
from surgery.training.shards import local

__all__ = ["StepCost", "flop_counter", "measure_step", "optimizer_bytes", "storage_bytes"]


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the storages behind `tensors`, each storage once."""
    storages = {}
    for tensor in tensors:
        storage = local(tensor).untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def optimizer_bytes(optimizer: Any) -> int:
    """Return the bytes of the optimizer's state tensors."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return storage_bytes(
        value for state in inner.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    )


@dataclass(frozen=True, slots=True)
class StepCost:
    """One step, measured: floating-point operations by PyTorch's counter, and bytes kept for the backward pass."""

    forward: int
    backward: int
    activations: int


def measure_step(model: nn.Module, compute_loss: Callable[[Mapping[str, Any]], torch.Tensor], batch: Any) -> StepCost:
    """Run forward and backward of `batch` once and count, parameters not counted as activations.

    The pass is thrown away: no gradient, no random draw and no buffer of it stays.
    """
    known = _addresses(model)
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            # The storage is kept, so that no later one can have its address.
            saved[storage.data_ptr()] = storage
        return tensor

    before = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.requires_grad]
    was_training = model.training
    model.train()
    try:
        for parameter, _ in before:
            parameter.grad = None
        with preserved_randomness():
            counter = flop_counter()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), counter:
                loss = compute_loss(batch)
            known = _addresses(model)  # of parameters that were put together for the forward, and stay so
            activations = sum(storage.nbytes() for place, storage in saved.items() if place not in known)
            saved.clear()
            forward = counter.get_total_flops()
            with (counter := flop_counter()):
                loss.backward()  # type: ignore[no-untyped-call]
        return StepCost(forward, counter.get_total_flops(), activations)
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
        model.train(was_training)


def _addresses(model: nn.Module) -> set[int]:
    return {local(tensor).untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}


def flop_counter() -> FlopCounterMode:
    """Return PyTorch's counter, which also counts the fused attention of processors.

    PyTorch has formulas for fused attention and does not apply them to the kernel for processors, whose products would
    be counted as nothing.
    """
    kernel = "_scaled_dot_product_flash_attention_for_cpu"
    own = {
        getattr(torch.ops.aten, name): formula
        for name, formula in ((kernel, _attention), (f"{kernel}_backward", _attention_backward))
        if hasattr(torch.ops.aten, name)
    }
    return FlopCounterMode(display=False, custom_mapping=own)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]
