"""Attaching a plan: build every adapter first, then swap classes; a failure anywhere leaves the model as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from surgery.adapter import Adapter
from surgery.architecture import Site
from surgery.errors import PluginError
from surgery.operation.blame import ORIGIN
from surgery.operation.fold import canonical_view
from surgery.operation.host import HostState, host_class_of, operated_class
from surgery.operation.ledger import Ledger
from surgery.operation.reads import read_past_modules
from surgery.planning import Edit, Plan
from surgery.planning.live import STATE_CHILD
from surgery.registry import Registry

__all__ = ["Built", "alike_everywhere", "attach_state", "build_adapters", "site_seed", "slot_key"]

_KNOWN_FORWARDS = frozenset({"linear", "conv1d", "embedding"})


@dataclass(frozen=True)
class Built:
    """One edit's adapter, ready to be attached, and the channel it will use."""

    edit: Edit
    adapter: Adapter
    folds: bool


def site_seed(seed: int, key: str) -> int:
    """Return the seed of one site's adapter: a function of (seed, site) and of nothing else."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "little") & (2**63 - 1)


def slot_key(edit: Edit) -> str:
    """Return the name under which an edit's adapter stands in its host's child (module names hold no dots)."""
    site = edit.site
    return f"{site.parameter}_{site.role.replace('.', '_')}" if site.slice else site.parameter


def build_adapters(plan: Plan, modules: Mapping[str, nn.Module], registry: Registry) -> list[Built]:
    """Build the adapters of all edits without touching the model or torch's global random state.

    Raises:
        PluginError: an adapter type that raised, or built something else than it had promised.
    """
    built = []
    generator = torch.Generator()
    read = read_past_modules(modules)
    with alike_everywhere():
        for edit in plan.edits:
            generator.manual_seed(site_seed(plan.spec.seed, edit.site.key))
            built.append(_build(edit, modules[edit.site.path], generator, registry, read))
    return built


@contextmanager
def alike_everywhere() -> Iterator[None]:
    """What a plugin builds must not depend on settings of the process, nor change its random state.

    Decompositions, as orthogonal starts need them, give other bits on other numbers of threads.
    """
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(mode=False):
        try:
            torch.set_default_dtype(torch.float32)
            torch.set_num_threads(1)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)


class _Copies(Mapping[str, torch.Tensor]):
    """The tensors of a host by local name, cut and turned for an edit; each look-up is a copy, the base is safe."""

    def __init__(self, host: nn.Module, sites: Sequence[Site]) -> None:
        self._host = host
        self._sites = {site.parameter: site for site in sites}

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._host._parameters[self._sites[name].parameter]
        assert tensor is not None
        # Strides are kept: what an adapter keeps in the host's own layout stays contiguous there.
        return canonical_view(tensor.detach(), self._sites[name]).clone(memory_format=torch.preserve_format)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def _build(
    edit: Edit, host: nn.Module, generator: torch.Generator, registry: Registry, read: Collection[tuple[int, str]]
) -> Built:
    kind = registry.adapter(edit.adapter)
    pristine = _Copies(host, edit.sites)
    try:
        adapter = kind.build(edit.site, edit.options, pristine, generator)
    except Exception as error:
        raise _failure(edit, f"build failed: {type(error).__name__}: {error}", registry) from error
    if not isinstance(adapter, Adapter):
        raise _failure(edit, f"build must return an Adapter, not {type(adapter).__name__}", registry)
    if type(adapter).activates:
        _check_activate(type(adapter), edit, registry)
    vars(adapter)[ORIGIN] = registry.origin("adapter", edit.adapter)
    trainable = list(adapter.parameters())
    count = sum(parameter.numel() for parameter in trainable)
    if count != edit.parameters:
        raise _failure(edit, f"the plan promised {edit.parameters:,} parameters, build made {count:,}", registry)
    base = host._parameters[edit.site.parameter]
    assert base is not None
    if base.device.type != "cpu":
        adapter.to(base.device)
    if not host.training:
        adapter.eval()
    knows_forward = edit.site.host in _KNOWN_FORWARDS and _is_exact(host) and edit.site.parameter == "weight"
    # What is read without a call never sees the output, and what is tied has other readers.
    is_read = edit.tied == "share" or any((id(host), site.parameter) in read for site in edit.sites)
    return Built(edit, adapter, not (type(adapter).activates and knows_forward and not is_read))


def _check_activate(cls: type[Adapter], edit: Edit, registry: Registry) -> None:
    own = getattr(cls.activate, "__func__", None)
    if own is None:
        raise _failure(edit, f"{cls.__name__}.activate must be a classmethod", registry)
    if own is getattr(Adapter.activate, "__func__", None):
        raise _failure(edit, f"{cls.__name__} sets `activates` and does not implement `activate`", registry)


def _failure(edit: Edit, what: str, registry: Registry) -> PluginError:
    return registry.failure("adapter", edit.adapter, what, edit.site.key)


def _is_exact(host: nn.Module) -> bool:
    """Whether the host's forward is the plain linear map or look-up; subclasses and wrappers may compute anything."""
    if "forward" in vars(host):  # somebody (accelerate's hooks, say) put a forward on the instance, past the class
        return False
    cls = host_class_of(host)
    return cls in (nn.Linear, nn.Embedding) or (cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers."))


def attach_state(host: nn.Module, overridden: frozenset[str], activates: bool, ledger: Ledger) -> HostState:
    """Give `host` the class and child that the edits need, widening what it already has; recorded in `ledger`."""
    state = host._modules.get(STATE_CHILD)
    if not isinstance(state, HostState):
        state = _add_child(host, ledger)
    old = type(host)
    recipe: tuple[type[nn.Module], frozenset[str], bool] = getattr(old, "_surgery_recipe", (old, frozenset(), False))
    new = operated_class(recipe[0], recipe[1] | overridden, recipe[2] or activates)
    if new is not old:
        # Past nn.Module.__setattr__, which looks for parameters, modules and buffers first.
        swap = object.__setattr__
        ledger.act(lambda: swap(host, "__class__", new), lambda: swap(host, "__class__", old))
    return state


def _add_child(host: nn.Module, ledger: Ledger) -> HostState:
    state = HostState(training=host.training)

    def add() -> None:
        host._modules[STATE_CHILD] = state

    def drop() -> None:
        host._modules.pop(STATE_CHILD, None)

    ledger.act(add, drop)
    return state
