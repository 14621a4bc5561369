"""A task as it is asked: what its plugin raises, and what it answers in another form than its contract's, names it."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from surgery.errors import SurgeryError
from surgery.registry.contracts import TaskType

if TYPE_CHECKING:
    from surgery.registry.registry import Registry

__all__ = ["asked"]

_METHODS = frozenset(
    {
        *("labels", "encode", "losses", "score", "primary", "outputs", "logits"),
        *("answers", "items", "notes", "generation"),
    }
)


def asked(task: TaskType[Any], registry: Registry) -> TaskType[Any]:
    """Return `task`, a plugin of `registry`, so that whatever its methods do wrong is a PluginError that names them.

    Shapes and kinds are looked at, no tensor's values: `losses` is asked in every step, and would wait for a device.
    """
    return cast("TaskType[Any]", task if isinstance(task, _Asked) else _Asked(task, registry))


class _Asked:
    """Passes everything on to the task; its methods are guarded."""

    def __init__(self, task: TaskType[Any], registry: Registry) -> None:
        self._task = task
        self._registry = registry

    def __getattr__(self, name: str) -> Any:
        if name in ("_task", "_registry"):  # while a copy is made there are none
            raise AttributeError(name)
        value = getattr(self._task, name)
        # A task that has no texts written is known by the method that it did not write.
        if name not in _METHODS or getattr(value, "__func__", None) is TaskType.generation:
            return value
        return functools.partial(self._ask, name, value)

    def _ask(self, name: str, method: Callable[..., Any], *arguments: Any, **keys: Any) -> Any:
        try:
            answer = method(*arguments, **keys)
            if name == "notes":
                answer = tuple(answer)  # a generator fails while it is read
        except (SurgeryError, MemoryError):
            raise
        except Exception as error:
            if type(error).__module__.partition(".")[0] == "torch":  # memory of a device that is used up, among others
                raise
            text = next(iter(str(error).strip().splitlines()), "")[:300]
            what = f"{name} failed: {type(error).__name__}{f': {text}' if text else ''}"
            raise self._failure(what) from error
        for wrong in _CHECKS[name](answer, *arguments) if name in _CHECKS else ():
            raise self._failure(f"{name} returned {wrong}")
        return answer

    def _failure(self, what: str) -> SurgeryError:
        return self._registry.failure("task", self._task.name, what)


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _labels(answer: Any, *_: Any) -> Iterator[str]:
    if not _is_list(answer):
        yield f"{_kind(answer)}; wanted: a tuple of label names, () where the task has none"
        return
    for label in answer:
        if not isinstance(label, str):
            yield f"{label!r} among the labels, {_kind(label)}; wanted: names, each a str"


def _encode(answer: Any, *_: Any) -> Iterator[str]:
    if not _is_list(answer):
        yield f"{_kind(answer)}; wanted: a list with a dict for each example"
        return
    for index, example in enumerate(answer):
        if not isinstance(example, Mapping):
            yield f"{_kind(example)} as example {index}; wanted: a dict with input_ids and labels"
            return
        for key in ("input_ids", "labels"):
            if example.get(key) is None:
                yield f"no {key!r} in example {index}"
        if not _is_list(example["input_ids"]) or not example["input_ids"]:
            yield f"{_kind(example['input_ids'])} without tokens as input_ids of example {index}; wanted: a list of ids"


def _losses(answer: Any, logits: Any, labels: Any, *_: Any) -> Iterator[str]:
    wanted = f"wanted: (losses, units), two tensors of shape ({len(labels)},), one entry for each example"
    if not (isinstance(answer, tuple | list) and len(answer) == 2):
        yield f"{_kind(answer)}; {wanted}"
        return
    for name, value in zip(("losses", "units"), answer, strict=True):
        if not hasattr(value, "is_floating_point"):
            yield f"{_kind(value)} as {name}; {wanted}"
            return
        if tuple(value.shape) != (len(labels),):
            hint = " (reduction='none' keeps them apart)" if name == "losses" and not value.dim() else ""
            yield f"{name} of shape {tuple(value.shape)}; {wanted}{hint}"
    loss, units = answer
    if not loss.is_floating_point():
        yield f"losses of {loss.dtype}; wanted: floating-point numbers, nats"
    if units.is_floating_point() or units.is_complex():
        yield f"units of {units.dtype}; wanted: whole numbers, how many labels of each example are not -100"


def _answers(answer: Any, logits: Any, examples: Any, *_: Any) -> Iterator[str]:
    if not isinstance(answer, Mapping):
        yield f"{_kind(answer)}; wanted: a dict, name -> one value for each example of the batch"
        return
    for name, values in answer.items():
        if not hasattr(values, "__len__") or len(values) != len(examples):
            count = f"{len(values)} values" if hasattr(values, "__len__") else _kind(values)
            yield f"{count} of {name!r} for a batch of {len(examples)} examples; wanted: one for each"


def _items(answer: Any, *_: Any) -> Iterator[str]:
    if not isinstance(answer, Mapping):
        yield f"{_kind(answer)}; wanted: a dict, name -> array with one entry for each item"


def _score(answer: Any, *_: Any) -> Iterator[str]:
    if not isinstance(answer, Mapping):
        yield f"{_kind(answer)}; wanted: a dict, metric -> number"
        return
    for name, value in answer.items():
        if not isinstance(value, numbers.Real):
            yield f"{_kind(value)} for {name!r}; wanted: a number, such as float(...) of it"


_CHECKS: Mapping[str, Callable[..., Iterator[str]]] = {
    "labels": _labels,
    "encode": _encode,
    "losses": _losses,
    "answers": _answers,
    "items": _items,
    "score": _score,
}
