"""The class swap: a host keeps parameters, keys and identity; it gets a subclass of its own class and one child."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import nn

from surgery.adapter import Adapter
from surgery.errors import PluginError
from surgery.operation.blame import failure, named
from surgery.operation.factored import FactoredWeight, factored_chain
from surgery.operation.fold import Link, fold_chain, refuse_writing
from surgery.planning.live import STATE_CHILD

__all__ = ["HostState", "host_class_of", "is_operated", "operated_class"]


class HostState(nn.Module):
    """The one child of an operated host: its adapters, and what they presently do.

    Its own children are called by adapter name; each holds the adapters of that name on this host, by slot.

    Attributes:
        activations: groups of adapters to apply to the host's output, in canonical order.
        overrides: parameter name -> chain of adapters that the host's forward must see folded in.
        pristine: parameter name -> the base's tensor, while the live one holds a merge.
        calls: counts uses of each adapter during a probe; None otherwise.
    """

    activations: tuple[tuple[Adapter, ...], ...]
    overrides: dict[str, tuple[Link, ...]]
    pristine: dict[str, torch.Tensor]
    calls: dict[int, int] | None

    def __init__(self, *, training: bool = True) -> None:
        super().__init__()
        # Plain attributes, written past nn.Module.__setattr__: one of these is made for every operated host.
        self.__dict__.update(activations=(), overrides={}, pristine={}, calls=None, _optional_prefix=None)
        self.__dict__["training"] = training
        self._load_state_dict_post_hooks[0] = _forgive_missing

    def put(self, name: str, slot: str, adapter: Adapter) -> None:
        """Register an adapter under its name and slot."""
        # Written to `_modules` directly: an adapter's name must not clash with an attribute, nor cost a scan.
        if name not in self._modules:
            self._modules[name] = nn.Module()
        child = self._modules[name]
        assert child is not None
        child._modules[slot] = adapter

    def set_activations(self, groups: tuple[tuple[Adapter, ...], ...]) -> None:
        """Say which groups of adapters act on the host's output from now on."""
        self.__dict__["activations"] = groups

    def take(self, name: str) -> nn.Module | None:
        """Remove and return the child that holds the adapters called `name`, if there is one."""
        return self._modules.pop(name, None)

    def value(self, parameter: str, base: torch.Tensor) -> torch.Tensor:
        """Return what the host computes with for `parameter`."""
        chain = self.overrides.get(parameter)
        if not chain or (type(base) is not nn.Parameter and _is_shared_out(base, chain)):
            return base
        if self.calls is not None:
            self._count(adapter for adapter, _ in chain)
        pristine = self.pristine.get(parameter, base) if self.pristine else base
        if torch.compiler.is_compiling():
            return fold_chain(parameter, pristine, chain).to(base.dtype)
        factored = factored_chain(parameter, pristine, chain)
        if factored is not None:
            return FactoredWeight(pristine, factored, lambda: _folded(parameter, pristine, chain, base.dtype))
        return _folded(parameter, pristine, chain, base.dtype)

    def apply_to(self, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return the host's output with every active activation adapter applied."""
        if torch.compiler.is_compiling():  # a compiler cannot leave a `try` and come back
            for group in self.activations:
                output = type(group[0]).activate(group, inputs, output)
            return output
        for group in self.activations:
            if self.calls is not None:
                self._count(group)
            shape = output.shape
            try:
                output = type(group[0]).activate(group, inputs, output)
            except Exception as error:
                raised = failure("activate", group[0], group[0].site.key, error)
                if raised is error:
                    raise
                raise raised from error
            if not isinstance(output, torch.Tensor) or output.shape != shape:
                _refuse_output(group, output, shape)
        return output

    def _count(self, adapters: Iterable[Adapter]) -> None:
        assert self.calls is not None
        for adapter in adapters:
            self.calls[id(adapter)] = self.calls.get(id(adapter), 0) + 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Base checkpoints stay loadable, strictly, while operated: a state dict without any adapter tensor of this
        # host misses none. One that holds some of them must hold them all.
        self._optional_prefix: str | None = None if any(key.startswith(prefix) for key in state_dict) else prefix
        super()._load_from_state_dict(state_dict, prefix, *args)


def _is_shared_out(base: torch.Tensor, chain: tuple[Link, ...]) -> bool:
    """Whether FSDP2 has shared out a host's parameter and all that would be folded into it.

    Nobody computes with parts: before a forward they are put together. FSDP2 itself reads the attribute, to find what
    it has shared out, and must find the parameter: what it would take instead becomes the base.
    """
    tensors = [base, *(tensor for adapter, _ in chain for tensor in adapter.parameters())]
    return all(hasattr(tensor, "placements") for tensor in tensors)


def _folded(parameter: str, pristine: torch.Tensor, chain: tuple[Link, ...], dtype: torch.dtype) -> torch.Tensor:
    version = pristine._version
    folded = fold_chain(parameter, pristine, chain)
    if pristine._version != version:
        refuse_writing(parameter, chain)
    return folded if folded.dtype == dtype else folded.to(dtype)


def _refuse_output(group: tuple[Adapter, ...], output: object, shape: torch.Size) -> NoReturn:
    got = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    raise PluginError(
        f"activate must return a tensor of shape {list(shape)}, not {got}",
        f"{named(group)} on {group[0].site.key}",
        "repair the adapter type",
    )


def _forgive_missing(state: HostState, incompatible: Any) -> None:
    prefix = state._optional_prefix
    if prefix is not None:
        kept = [key for key in incompatible.missing_keys if not key.startswith(prefix)]
        incompatible.missing_keys[:] = kept


def is_operated(module: nn.Module) -> bool:
    """Return whether `module` is an operated host."""
    return isinstance(module._modules.get(STATE_CHILD), HostState)


def host_class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class that the host had before it was operated."""
    original: type[nn.Module] = getattr(type(module), "_surgery_host_class", type(module))
    return original


def operated_class(host_class: type[nn.Module], overridden: frozenset[str], activates: bool) -> type[nn.Module]:
    """Return the subclass of `host_class` that consults its `surgery` child; the same one for the same arguments.

    Args:
        host_class: the host's own class.
        overridden: parameter names read through a property, so that forward sees folded values.
        activates: whether the output is passed through the active adapters.
    """
    recipe = (host_class, overridden, activates)
    if recipe not in _CLASSES:
        _CLASSES[recipe] = _make_class(*recipe)
    return _CLASSES[recipe]


_CLASSES: dict[tuple[type[nn.Module], frozenset[str], bool], type[nn.Module]] = {}
"""Swapped classes made so far: hosts of one kind must share one class, as compilers and pickles expect."""


def _make_class(host_class: type[nn.Module], overridden: frozenset[str], activates: bool) -> type[nn.Module]:
    namespace: dict[str, Any] = {
        "__module__": host_class.__module__,
        "__qualname__": host_class.__qualname__,
        "__doc__": host_class.__doc__,
        "__reduce_ex__": _reduce_ex,
        "_surgery_host_class": host_class,
        "_surgery_recipe": (host_class, overridden, activates),
    }
    for name in sorted(overridden):
        namespace[name] = property(_getter(name))
    if activates:
        namespace["forward"] = _forward(host_class)
    return type(host_class.__name__, (host_class,), namespace)


def _getter(name: str) -> Callable[[nn.Module], torch.Tensor | None]:
    def get(self: nn.Module) -> torch.Tensor | None:
        base = self._parameters[name]
        state = self._modules.get(STATE_CHILD)
        return base if base is None or not isinstance(state, HostState) else state.value(name, base)

    return get


def _forward(host_class: type[nn.Module]) -> Callable[..., torch.Tensor]:
    base_forward = host_class.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        output: torch.Tensor = base_forward(self, *args, **kwargs)
        inputs = args[0] if args else next(iter(kwargs.values()))
        state: HostState = self._modules[STATE_CHILD]  # type: ignore[assignment]
        return state.apply_to(inputs, output)

    return forward


def _reduce_ex(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    # The swapped class is made at run time and cannot be found by name: copies and pickles remake it.
    recipe = type(self)._surgery_recipe  # type: ignore[attr-defined]
    return _revive, recipe, self.__dict__


def _revive(host_class: type[nn.Module], overridden: frozenset[str], activates: bool) -> nn.Module:
    cls = operated_class(host_class, overridden, activates)
    return cls.__new__(cls)
