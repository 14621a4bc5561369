"""What cannot be operated, and what to do instead."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from surgery.architecture import Site
from surgery.errors import Problem, StateError
from surgery.operation.host import is_operated
from surgery.operation.untie import refuse_untying
from surgery.planning import Plan
from surgery.planning.live import STATE_CHILD, host_of

__all__ = ["refuse_unfit"]

_WRAPPERS = {
    "OptimizedModule": "operate on the plain model, then torch.compile it",
    "DataParallel": "operate on the plain model, then wrap it",
    "DistributedDataParallel": "operate on the plain model, then wrap it",
    "FullyShardedDataParallel": "operate on the plain model, then shard it",
    "FSDPModule": "operate on the plain model, then shard it",
    "ScriptModule": "operate on the plain model, then trace or script it",
}


_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def refuse_unfit(plan: Plan, modules: Mapping[str, nn.Module], *, is_first: bool) -> None:
    """Raise StateError for models that are compiled, wrapped, sharded, quantised, on meta, or already operated."""
    problems: list[Problem] = []
    is_wrapped = any(map(_wrapper, {type(module) for module in modules.values()}))
    for path, module in modules.items():
        # What all modules of plain models pass is asked here, and the reason of a refusal only where there is one.
        if is_wrapped or module._compiled_call_impl is not None or STATE_CHILD in module._modules:
            problems += _of_module(path, module, is_first)
    if problems:  # what else is wrong may come from that
        raise StateError.of(list(dict.fromkeys(problems))[:20])
    for edit in plan.edits:
        for site in edit.sites:
            problems += _of_site(site, modules)
        if edit.tied == "untie" and not problems:
            problems += _one_module(edit.site, modules)
    if not problems:
        names = _names(modules)
        problems = _contradictions(plan, modules, names) or _aliases(plan, modules, names)
        problems += refuse_untying(plan, modules)
    if problems:
        raise StateError.of(problems[:20])


def _of_module(path: str, module: nn.Module, is_first: bool) -> list[Problem]:
    cls: Any = type(module)
    if wrapper := _wrapper(cls):
        return [Problem(f"a {wrapper} cannot be operated", path or "the model", _WRAPPERS[wrapper])]
    if module._compiled_call_impl is not None:
        return [Problem("the module is already compiled", path or "the model", _WRAPPERS["OptimizedModule"])]
    if is_first and is_operated(module):
        hint = 'use op.add(plan, name="b") or surgery.load_adapter(op, folder, name="b"), or op.undo() first'
        return [Problem("the model is already operated", hint=hint)]  # without its path: all hosts say the same
    if STATE_CHILD in module._modules and not is_operated(module):
        return [
            Problem(
                f"the model has a module of its own called {STATE_CHILD!r}, the name that operated hosts need",
                path or "the model",
                "rename it",
            )
        ]
    return []


def _wrapper(cls: Any) -> str:
    return next((base.__name__ for base in cls.__mro__ if base.__name__ in _WRAPPERS), "")


def _of_site(site: Site, modules: Mapping[str, nn.Module]) -> list[Problem]:
    name, dtype = site.name, site.dtype
    module = modules.get(site.path)
    parameter = module._parameters.get(site.parameter) if module is not None else None
    if module is None or parameter is None:
        return [Problem("the plan names a parameter that this model does not have", name, "plan for this model")]
    found = str(parameter.dtype).removeprefix("torch.")
    shape = list(site.shape)
    if site.slice is not None:
        shape[site.slice.axis] = math.prod(site.slice.view)
    reasons = (
        (parameter.is_meta, "the parameter is on the meta device and has no values", "load the weights first"),
        (type(parameter.data) is not torch.Tensor, "the parameter is no plain tensor", "operate before you shard it"),
        (parameter.dtype not in _DTYPES, f"the parameter is quantised: {found}", "dequantise the model first"),
        (found != dtype, "the plan was made for another dtype than the model's", "plan again for this model"),
        (
            list(parameter.shape) != shape,
            f"the plan was made for shape {shape}, the model has {list(parameter.shape)}",
            "plan again for this model",
        ),
        ("parametrizations" in module._modules, "the module is parametrized", "remove the parametrization first"),
        (
            module.__dict__.get("max_norm") is not None,
            "an Embedding with max_norm rewrites its own weight",
            "set max_norm to None first",
        ),
    )
    return [Problem(what, name, hint) for is_so, what, hint in reasons if is_so][:1]


def _one_module(site: Site, modules: Mapping[str, nn.Module]) -> list[Problem]:
    """One module under two paths cannot be cut in two: it holds one parameter."""
    paths = [name.rpartition(".")[0] for name in site.tied]
    same = [path for path in paths if modules.get(path) is modules[site.path]]
    if not same:
        return []
    return [Problem(f"{site.path} and {same[0]} are one module, not two tied ones", site.name, "say `tied: share`")]


@dataclass
class _Names:
    """The parameters of a model by id: each with its first name (path, local), and the further names of tied ones."""

    first: dict[int, tuple[nn.Parameter, str, str]] = field(default_factory=dict)
    further: dict[int, list[str]] = field(default_factory=dict)

    def of(self, key: int) -> set[str]:
        _, path, local = self.first[key]
        return {_join(path, local), *self.further.get(key, ())}


def _names(modules: Mapping[str, nn.Module]) -> _Names:
    names = _Names()
    first = names.first
    for path, module in modules.items():
        for local, parameter in module._parameters.items():
            if parameter is None:
                continue
            key = id(parameter)
            if key in first:
                names.further.setdefault(key, []).append(_join(path, local))
            else:
                first[key] = (parameter, path, local)
    return names


def _join(path: str, local: str) -> str:
    return f"{path}.{local}" if path else local


def _contradictions(plan: Plan, modules: Mapping[str, nn.Module], names: _Names) -> list[Problem]:
    """Headers tell neither hosts nor ties: a plan made from them may take them for others than the model's are."""
    problems: list[Problem] = []
    for edit in plan.edits:
        for site in edit.sites:
            module = modules[site.path]
            parameter = module._parameters[site.parameter]
            # Only of a matrix does the host decide what it means; a model cannot say that no linear module applies it.
            is_told = len(site.shape) == 2 and site.host != "matrix"
            host = host_of(module, parameter) if is_told else site.host
            key = id(parameter)
            others = names.of(key) - {site.name} if site.tied or key in names.further else set()
            if host != site.host or others != set(site.tied):
                said, found = _described(site.host, site.tied), _described(host, sorted(others))
                what = f"the plan says {said}; the model has {found}"
                problems.append(Problem(what, site.name, "plan again for this model"))
    return problems


def _described(host: str, tied: Collection[str]) -> str:
    return f"host {host}, " + (f"tied to {', '.join(tied)}" if tied else "untied")


def _aliases(plan: Plan, modules: Mapping[str, nn.Module], names: _Names) -> list[Problem]:
    """Two different tensors over one memory: replacing one would silently cut it off the other."""
    # A buffer over an edited parameter would keep the base's bits after a merge.
    held: dict[int, tuple[torch.Tensor, str, str]] = {**names.first, **_buffers(modules)}
    starts = sorted((held[key][0].data_ptr(), key) for key in held)
    # A tensor without memory, on the meta device for one, starts at 0.
    ends = [start + _reach(held[key][0]) if start else 0 for start, key in starts]
    # Where any two overlap, two neighbours do.
    if all(end <= start for end, (start, _) in zip(ends, starts[1:], strict=False)):
        return []
    edited = {id(modules[site.path]._parameters[site.parameter]) for edit in plan.edits for site in edit.sites}
    spans = [
        (start, end, key in edited, *held[key][1:])
        for end, (start, key) in zip(ends, starts, strict=True)
        if end > start
    ]
    problems: list[Problem] = []
    furthest = (0, 0, False, "", "")
    for span in spans:
        if span[0] < furthest[1] and (span[2] or furthest[2]):
            what = f"the tensor shares memory with {_join(*furthest[3:])}, a different Parameter or buffer"
            problems.append(Problem(what, _join(*span[3:]), "clone one of them first"))
        furthest = max(furthest, span, key=lambda item: item[1])
    return problems


def _buffers(modules: Mapping[str, nn.Module]) -> dict[int, tuple[torch.Tensor, str, str]]:
    """The buffers of a model by id, with one name of each. Where they overlap one another alone, nothing is wrong."""
    return {
        id(buffer): (buffer, path, local)
        for path, module in modules.items()
        for local, buffer in module._buffers.items()
        if buffer is not None and buffer.layout == torch.strided
    }


def _reach(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last one."""
    if tensor.is_contiguous():
        return tensor.nbytes
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + steps) * tensor.element_size()
