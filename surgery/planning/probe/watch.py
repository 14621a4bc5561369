"""What happens in a forward pass, in order: inputs of linear maps, scores of an attention, and what it mixes of values.

Nothing here depends on how a model names its parts or on which function computes its attention: the softmax over
positions and the product that follows it are seen as they are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Event", "NotMeasurableError", "Push", "fan_out", "is_linear", "watched"]

_SOFTMAX = torch.ops.aten._softmax.default
_PRODUCTS = frozenset(getattr(torch.ops.aten, name).default for name in ("mm", "bmm", "addmm", "baddbmm"))

_MOST_OPERATIONS = 2_000
_MOST_ELEMENTS = 16_000_000
"""Of one pass, and of one tensor in it. A usual small model needs 500 and 200,000; one that walks through positions one
by one, or compares all of them at once, would be measured for minutes."""

Push = Callable[[Tensor], Tensor]
"""Makes of a module's output what the module is to return instead."""


class NotMeasurableError(Exception):
    """Nothing can be told of a module in this way."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: `input` of a linear map, `scores` before a softmax over positions, or `mix` of values by its result.
        name: path of the module, for `input`.
        attention: which softmax of the pass, counted from 0, for `scores` and `mix`; else -1.
        lengths: (asking, asked) positions of that attention.
        value: the tensor, a copy.
    """

    kind: str
    name: str = ""
    attention: int = -1
    lengths: tuple[int, int] = (0, 0)
    value: Tensor | None = None


def is_linear(module: nn.Module) -> bool:
    """Return whether a module holds the matrix of a linear map."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and not isinstance(module, nn.Embedding)


def fan_out(module: nn.Module) -> int:
    """Return the width of a linear map's output."""
    weight = module._parameters["weight"]
    assert weight is not None
    return int(weight.shape[1 if hasattr(module, "nf") else 0])  # transformers' Conv1D is stored the other way


def watched(
    model: nn.Module,
    batch: Mapping[str, Any],
    names: Mapping[nn.Module, str],
    pushes: Mapping[nn.Module, Push],
) -> list[Event]:
    """Run a model once and return what happened.

    Args:
        model: in evaluation mode.
        batch: keyword arguments of its forward.
        names: the linear maps to watch -> their paths.
        pushes: module -> what its output is replaced by, in its first call only.

    Raises:
        NotMeasurableError: the model fails.
    """
    events: list[Event] = []
    with ExitStack() as stack:
        for module, name in names.items():
            stack.enter_context(_input_of(module, name, events))
        for module, push in pushes.items():
            stack.enter_context(_pushed(module, push))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_Attention(events))
        try:
            model(**batch)
        except NotMeasurableError:
            raise
        except Exception as error:  # a model's own code, on values that it never sees otherwise
            raise NotMeasurableError(str(error)) from error
    attentions = {event.attention for event in events if event.kind == "mix"}
    return [event for event in events if event.kind != "scores" or event.attention in attentions]


@contextmanager
def _input_of(module: nn.Module, name: str, events: list[Event]) -> Iterator[None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(given, Tensor):
            events.append(Event("input", name, value=given.detach().clone()))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _pushed(module: nn.Module, push: Push) -> Iterator[None]:
    calls = 0

    def change(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            return None
        return push(output) if isinstance(output, Tensor) else None

    handle = module.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


class _Attention(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every softmax over positions, and the product that its result is a factor of."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events = events
        self._count = 0
        self._operations = 0
        # Results of a softmax, and what was made of them element by element: id -> (tensor, which softmax).
        self._weights: dict[int, tuple[Tensor, int, tuple[int, int]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._operations += 1
        if self._operations > _MOST_OPERATIONS:
            raise NotMeasurableError("a pass takes too many operations")
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and output.numel() > _MOST_ELEMENTS:
            raise NotMeasurableError("a pass makes too large a tensor")
        if func is _SOFTMAX and args[0].dim() >= 3 and min(args[0].shape[-2:]) > 2 and args[1] % args[0].dim() > 0:
            # Who asks is on the axis that the softmax leaves apart, whichever way a model writes its scores.
            scores: Tensor = args[0] if args[1] % args[0].dim() == args[0].dim() - 1 else args[0].mT
            lengths = (scores.shape[-2], scores.shape[-1])
            self._events.append(Event("scores", "", self._count, lengths, scores.clone()))
            self._weights[id(output)] = (output, self._count, lengths)
            self._count += 1
        elif isinstance(output, Tensor):
            for one in args:
                if isinstance(one, Tensor) and id(one) in self._weights:
                    _, attention, lengths = self._weights[id(one)]
                    if func in _PRODUCTS:
                        self._events.append(Event("mix", "", attention, lengths, output.clone()))
                    elif _is_as_large(output, self._weights[id(one)][0], lengths[1]):
                        self._weights[id(output)] = (output, attention, lengths)
                    break
        return output


def _is_as_large(value: Tensor, weights: Tensor, asked: int) -> bool:
    """Return whether a tensor still is one of weights of positions; a sink that nothing is mixed of may be gone."""
    return value.numel() in (weights.numel(), weights.numel() // asked * (asked - 1))
