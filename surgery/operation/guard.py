"""What cannot be operated, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from surgery.errors import Problem, StateError
from surgery.operation.host import is_operated
from surgery.planning import Plan

__all__ = ["refuse_unfit"]

_WRAPPERS = {
    "OptimizedModule": "operate on the plain model, then torch.compile it",
    "DataParallel": "operate on the plain model, then wrap it",
    "DistributedDataParallel": "operate on the plain model, then wrap it",
    "FullyShardedDataParallel": "operate on the plain model, then shard it",
    "FSDPModule": "operate on the plain model, then shard it",
}


def refuse_unfit(model: nn.Module, plan: Plan, modules: Mapping[str, nn.Module], *, is_first: bool) -> None:
    """Raise StateError for models that are compiled, wrapped, sharded, quantised, on meta, or already operated."""
    problems: list[Problem] = []
    for path, module in modules.items():
        problems += _of_module(path, module, is_first)
    for edit in plan.edits:
        for site in edit.sites:
            problems += _of_site(site.name, site.path, site.parameter, site.dtype, modules)
    if not problems:
        problems += _aliases(plan, modules)
    if problems:
        raise StateError.of(problems[:20])


def _of_module(path: str, module: nn.Module, is_first: bool) -> list[Problem]:
    for cls in type(module).__mro__:
        if cls.__name__ in _WRAPPERS:
            return [Problem(f"a {cls.__name__} cannot be operated", path or "the model", _WRAPPERS[cls.__name__])]
    if getattr(module, "_compiled_call_impl", None) is not None:
        return [Problem("the module is already compiled", path or "the model", _WRAPPERS["OptimizedModule"])]
    if is_first and is_operated(module):
        return [Problem("the model is already operated", path, "use op.add(plan, name=...), or op.undo() first")]
    return []


def _of_site(name: str, path: str, local: str, dtype: str, modules: Mapping[str, nn.Module]) -> list[Problem]:
    module = modules.get(path)
    parameter = module._parameters.get(local) if module is not None else None
    if module is None or parameter is None:
        return [Problem("the plan names a parameter that this model does not have", name, "plan for this model")]
    if parameter.is_meta:
        return [Problem("the parameter is on the meta device and has no values", name, "load the weights first")]
    if type(parameter.data) is not torch.Tensor:
        return [Problem(f"the parameter is a {type(parameter.data).__name__}", name, "operate before you shard it")]
    if not parameter.is_floating_point():
        return [Problem(f"the parameter has dtype {parameter.dtype}", name, "dequantise the model first")]
    if str(parameter.dtype).removeprefix("torch.") != dtype:
        return [Problem(f"the plan was made for {dtype}, the model has {parameter.dtype}", name, "plan again")]
    if hasattr(module, "parametrizations"):
        return [Problem("the module is parametrized", path, "remove the parametrization first")]
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return [Problem("an Embedding with max_norm rewrites its own weight", path, "set max_norm to None first")]
    return []


def _aliases(plan: Plan, modules: Mapping[str, nn.Module]) -> list[Problem]:
    """Two different Parameters over one memory: replacing one would silently cut it off the other."""
    spans: dict[int, list[tuple[int, int, int, str]]] = {}
    seen: set[int] = set()
    for path, module in modules.items():
        for local, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen or parameter.numel() == 0:
                continue
            seen.add(id(parameter))
            start = parameter.data_ptr()
            end = start + parameter.element_size() * (
                1 + sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
            )
            storage = parameter.untyped_storage().data_ptr()
            spans.setdefault(storage, []).append((start, end, id(parameter), f"{path}.{local}"))
    edited = {id(modules[edit.site.path]._parameters[edit.site.parameter]) for edit in plan.edits}
    return [
        Problem(f"the parameter shares memory with {other[3]}, a different Parameter", one[3], "clone one of them first")
        for group in spans.values()
        if len(group) > 1
        for one in group
        for other in group
        if one[2] in edited and other is not one and one[0] < other[1] and other[0] < one[1]
    ]
