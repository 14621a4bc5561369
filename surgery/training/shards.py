"""Shards: a copy of an operated model that several processes hold and train together, each a part (FSDP2).

The operated model itself stays whole, in main memory, and is not touched: the copy takes its tensors at the start and
gives the trained ones back, so that everything an operation can do, it can do before and after.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from surgery.errors import TrainingError
from surgery.operation import Operation

__all__ = ["Shards", "local", "whole"]

_HINT = "train it in one process, or leave out --use_fsdp: then every process holds the whole model"


class Shards:
    """The shared copy of an operation's model.

    Attributes:
        model: the copy, of class and names of the operated model; each process holds a part of every parameter.
    """

    def __init__(self, operation: Operation, device: torch.device) -> None:
        """Copy and share out. All processes must do it at once, each with the whole model.

        Raises:
            TrainingError: FSDP2 cannot share out this model, or was asked for something that is not supported.
        """
        _refuse_settings()
        self._operation = operation
        self.model = _copied(operation.model)
        _refuse_mixture(operation)
        try:
            _share_out(self.model, device)
        except (ValueError, NotImplementedError, AssertionError, RuntimeError) as error:
            what = f"the model cannot be shared out: {str(error).strip().splitlines()[0]}"
            raise TrainingError(what, type(operation.model).__name__, _HINT) from error

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what `operation.trainable()` returns, of the copy: this process's parts (DTensors)."""
        self._reshard()
        held = dict(self.model.named_parameters(remove_duplicate=False))
        return {name: held[name] for name in self._operation.trainable()}

    @torch.no_grad()
    def give_back(self) -> None:
        """Copy the trained tensors into the operation, in every process. All processes must do it at once."""
        targets = self._operation.trainable()
        for name, part in self.trainable().items():
            targets[name].copy_(whole(part))

    @torch.no_grad()
    def take(self) -> None:
        """Copy the operation's trainable tensors into the copy: each process its part."""
        sources = self._operation.trainable()
        for name, part in self.trainable().items():
            local(part).copy_(_part(sources[name].detach(), part))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the optimizer's state as one process would have it. All processes must do it at once."""
        state = optimizer.state_dict()
        moments = {
            index: {key: whole(value).cpu() if isinstance(value, torch.Tensor) else value for key, value in one.items()}
            for index, one in state["state"].items()
        }
        return {**state, "state": moments}

    def load_optimizer(self, optimizer: Any, state: Mapping[str, Any]) -> None:
        """Load into the optimizer this process's part of a state that `optimizer_state` or one process wrote."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = {
            index: {key: _like(value, parameters[index]) for key, value in one.items()}
            for index, one in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": moments})

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], most: float) -> torch.Tensor:
        """Scale the gradients so that their norm is at most `most`, and return the norm before.

        A norm of parts would be summed up in another order than one process does, and every later bit would differ: so
        each gradient is put together, one at a time.
        """
        held = [parameter for parameter in parameters if parameter.grad is not None]
        norms = [torch.linalg.vector_norm(whole(parameter.grad)) for parameter in held if parameter.grad is not None]
        if not norms:
            return torch.tensor(0.0)
        total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        factor = torch.clamp(most / (total + 1e-6), max=1.0)  # as torch.nn.utils.clip_grad_norm_ has it
        for parameter in held:
            assert parameter.grad is not None
            gradient = local(parameter.grad)
            gradient.mul_(factor.to(gradient.device))
        return total

    def _reshard(self) -> None:
        from torch.distributed.fsdp import FSDPModule

        for module in self.model.modules():
            if isinstance(module, FSDPModule):  # of which the outermost stays put together after a forward
                module.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a shared tensor put together; any other as it is. All processes must do it at once."""
    full = getattr(tensor, "full_tensor", None)
    found: torch.Tensor = tensor if full is None else full()
    return found


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a shared tensor; any other as it is."""
    found: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return found


def _part(tensor: torch.Tensor, like: Any) -> torch.Tensor:
    """Return the part of a whole tensor that this process has of `like`."""
    return local(_like(tensor, like))


def _like(value: Any, parameter: Any) -> Any:
    """Return `value` shared out as `parameter` is, where it has its shape."""
    from torch.distributed.tensor import distribute_tensor

    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or not hasattr(parameter, "placements"):
        return value
    tensor = value.to(local(parameter).device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy whose parameters are objects of their own over the same memory: sharing out copies it anyway."""
    known: dict[int, Any] = {}
    for parameter in model.parameters():
        # FSDP2 takes no others; an adapter may keep a tensor in the order in which its host does.
        tensor = parameter.detach().contiguous()
        known[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, known)


def _share_out(model: nn.Module, device: torch.device) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    frees = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in {"false", "0", "no"}
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=frees)
    fully_shard(model, mesh=mesh)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are put together one at a time, inner ones first: the layers, where they are known.

    A block whose parameters have readers outside of it (tied weights) is left to the rest of the model.
    """
    names = _block_names(model)
    owners: dict[int, set[int]] = {}
    found = [module for module in model.modules() if any(base.__name__ in names for base in type(module).__mro__)]
    inside = {id(block): {id(module) for module in block.modules()} for block in found}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(id(module))
    return [
        block
        for block in reversed(found)
        if block is not model and all(owners[id(parameter)] <= inside[id(block)] for parameter in block.parameters())
    ]


def _block_names(model: nn.Module) -> set[str]:
    named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    if named:
        names = {name.strip() for name in named.split(",")}
        known = {base.__name__ for module in model.modules() for base in type(module).__mro__}
        if names - known:
            what = f"the model has no module of class {', '.join(sorted(names - known))}"
            raise TrainingError(
                what, "--fsdp_transformer_layer_cls_to_wrap", "leave it out: the model knows its layers"
            )
        return names
    return set(getattr(model, "_no_split_modules", None) or ())


def _refuse_settings() -> None:
    """Refuse what the launcher was told and that would be left out without a word."""
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise TrainingError("FSDP1 is not supported", "accelerate launch", "add --fsdp_version 2")
    for name in ("OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING"):
        if os.environ.get(f"FSDP_{name}", "").lower() in {"1", "true", "yes"}:
            option = f"--fsdp_{name.lower()}"
            raise TrainingError(f"{option} is not supported", "accelerate launch", "leave it out")


def _refuse_mixture(operation: Operation) -> None:
    """FSDP2 adds up the gradients of a block in one dtype."""
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in operation.trainable().values()})
    if len(dtypes) > 1:
        what = f"the trainable tensors are {' and '.join(dtypes)}, and a model that is shared out must train one dtype"
        raise TrainingError(what, "model.dtype", "write dtype: float32 under model:")
