"""What each row of a linear map's output does, told by what moves first when the row is moved at one position."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from surgery.planning.probe.watch import Event, NotMeasurableError, Push, fan_out, watched

__all__ = ["Bench", "Row"]

_SPREAD = 5.0
"""By how much a row is moved, in units of its own spread: far enough to leave the flat side of an activation."""
_NOISE = 1e-5
"""Relative differences below this are rounding: many attentions compute their softmax in float32."""
_POSITION = 2
"""The position that is moved; there are positions before and after it."""
_TOGETHER = 64
"""Rows moved in one pass, each in an example of its own; not the number of positions of any example."""
_SAMPLE = 16
"""Rows moved first, spread over the output."""
_MOST_ROWS = 1024
"""A wider map has kept a size that nobody knew how to make small."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a row does.

    Attributes:
        kind: `query`, `key`, `value`; `feed`: it is one column of the input of another linear map, at its own
            position; `spread`: it is in several columns there, at its own position; `mixed`: it reaches another
            linear map in any other way; `unknown`.
        to: path of that linear map; for `value` of the one that takes what the attention mixed.
        columns: the columns of that linear map's input that move.
        straight: whether the column moves as far up as down, as the operand that passes no activation does.
        attention: which attention of the pass it belongs to.
        across: whether that attention is over another sequence.
    """

    kind: str
    to: str = ""
    columns: tuple[int, ...] = ()
    straight: bool = False
    attention: int = -1
    across: bool = False


_UNKNOWN = Row("unknown")


class Bench:
    """A small model and the linear maps in it.

    Args:
        model: in evaluation mode, float64.
        batch: (seed, size) -> arguments of its forward: `size` equal examples; another seed gives others as long.
        names: the linear maps to watch -> their paths.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Callable[[int, int], Mapping[str, Any]],
        names: Mapping[nn.Module, str],
    ) -> None:
        self._model = model
        self._batch = batch
        self._names = names
        self.paths = {name: module for module, name in names.items()}

    @property
    def runs(self) -> bool:
        """Whether the model takes its batches at all."""
        try:
            return bool(self._still)
        except NotMeasurableError:
            return False

    def rows(self, module: nn.Module) -> list[Row]:
        """Return what each row of a module's output does.

        Raises:
            NotMeasurableError: the module is called with something else than a batch of positions, or not at all.
        """
        if fan_out(module) > _MOST_ROWS:
            raise NotMeasurableError(f"{self._names[module]} is too wide")
        width = fan_out(module)
        sample = self._some(module, sorted({index * (width - 1) // (_SAMPLE - 1) for index in range(_SAMPLE)}))
        if all(row.kind in ("mixed", "unknown") for row in sample):
            return [_UNKNOWN] * width  # what no part of says anything is not looked at row by row
        if len({(row.kind, row.to) for row in sample}) == 1 and sample[0].kind == "spread":
            return [sample[0]] * width
        return [
            row
            for first in range(0, width, _TOGETHER)
            for row in self._some(module, range(first, min(first + _TOGETHER, width)))
        ]

    def depends(self, pinned: Sequence[nn.Module], taker: str) -> bool:
        """Return whether the input of `taker` depends on anything but the outputs of `pinned`.

        They give the same in two passes over different words; whatever else the input is made of differs then.
        """
        seen: list[Tensor] = []
        kept: dict[nn.Module, Tensor] = {}
        pushes: dict[nn.Module, Push] = {module: partial(_pinned, kept, module) for module in pinned}
        for seed in (0, 1):
            try:
                events = watched(self._model, self._batch(seed, 1), self._names, pushes)
            except NotMeasurableError:  # what was kept does not fit other words
                return True
            found = next((event for event in events if event.name == taker and event.kind == "input"), None)
            if found is None or found.value is None:
                return True
            seen.append(found.value)
        return seen[0].shape != seen[1].shape or not torch.equal(*seen)

    def take_the_same(self, modules: Collection[nn.Module]) -> bool:
        """Return whether modules are called with the same values: a self-attention's query, key and value are."""
        wanted = {self._names[module] for module in modules}
        first: dict[str, Tensor] = {}
        for event in self._still:
            if event.kind == "input" and event.name in wanted and event.value is not None:
                first.setdefault(event.name, event.value)
        values = list(first.values())
        return len(first) == len(wanted) and all(torch.equal(value, values[0]) for value in values)

    @cached_property
    def _still(self) -> list[Event]:
        return self._pass({})

    def _pass(self, pushes: Mapping[nn.Module, Push]) -> list[Event]:
        return watched(self._model, self._batch(0, _TOGETHER), self._names, pushes)

    def _after(self, module: nn.Module, events: list[Event]) -> list[Event]:
        """Return what happened after a module was first called."""
        called = (i for i, event in enumerate(events) if event.kind == "input" and event.name == self._names[module])
        start = next(called, None)
        if start is None:
            raise NotMeasurableError(f"{self._names[module]} is not called")
        return events[start + 1 :]

    def _some(self, module: nn.Module, which: Sequence[int]) -> list[Row]:
        still = self._after(module, self._still)
        up = self._after(module, self._pass({module: lambda output: _moved(output, which, _SPREAD)}))
        down = self._after(module, self._pass({module: lambda output: _moved(output, which, -_SPREAD)}))
        rows: dict[int, Row] = {}
        for event, *moved in zip(still, up, down, strict=False):
            if any((event.kind, event.name) != (other.kind, other.name) for other in moved):
                break  # a row has changed which experts are called
            changes = _changes(event, moved)
            if changes is None:
                continue
            steps, moves = changes
            for index in moves.flatten(1).any(1).nonzero().flatten().tolist():
                if index not in rows:
                    rows[index] = _row(event, [step[index] for step in steps], moves[index])
                elif rows[index].kind == "value" and not rows[index].to and event.kind == "input":
                    rows[index] = replace(rows[index], to=event.name, columns=_columns(moves[index]))
            if len(rows) == len(which) and all(row.to or row.kind != "value" for row in rows.values()):
                break
        return [rows.get(index, _UNKNOWN) for index in range(len(which))]


def _pinned(kept: dict[nn.Module, Tensor], module: nn.Module, output: Tensor) -> Tensor:
    """Return what a module gave when it was first asked."""
    return kept.setdefault(module, output.detach().clone())


def _moved(output: Tensor, which: Sequence[int], step: float) -> Tensor:
    """Return an output in which example i has row `which[i]` moved at one position.

    Raises:
        NotMeasurableError: the output is no batch of positions.
    """
    moved = output.clone()
    examples = torch.arange(len(which))
    spread = output.std().clamp_min(1e-3)
    seen = _by_example(moved)
    if seen is not None and seen.dim() > 3:
        seen = seen.squeeze()
    if seen is None or seen.dim() != 3 or seen.shape[1] <= _POSITION:
        raise NotMeasurableError(f"an output of shape {tuple(output.shape)} is no batch of positions")
    seen[examples, _POSITION, torch.tensor(which)] += step * spread
    return moved


def _by_example(value: Tensor) -> Tensor | None:
    """Return a view with examples first: of a batch, of a batch after positions, or of either of them flattened."""
    if value.shape[0] == _TOGETHER and value.dim() > 2:
        return value
    if value.dim() > 2 and value.shape[1] == _TOGETHER:
        return value.transpose(0, 1)
    if value.shape[0] % _TOGETHER == 0 and value.is_contiguous():
        return value.view(_TOGETHER, value.shape[0] // _TOGETHER, *value.shape[1:])
    return None


def _changes(event: Event, moved: Sequence[Event]) -> tuple[list[Tensor], Tensor] | None:
    """Return (changes up and down, where they are more than rounding), each with examples first."""
    assert event.value is not None
    still = _by_example(event.value)
    others = [_by_example(other.value) for other in moved if other.value is not None]
    if still is None or any(other is None or other.shape != still.shape for other in others):
        return None
    steps = [torch.nan_to_num(other - still, 0.0, 0.0, 0.0) for other in others if other is not None]
    limit = _NOISE * torch.nan_to_num(still.abs(), 0.0, 0.0, 0.0) + _NOISE * 1e-2
    moves = torch.stack([step.abs() > limit for step in steps]).any(0)
    return steps, moves


def _row(event: Event, steps: Sequence[Tensor], moves: Tensor) -> Row:
    """Tell what a row does from the first thing that moved with it."""
    if event.kind == "mix":
        return Row("value", attention=event.attention, across=_is_across(event))
    if event.kind == "scores":
        over_heads = moves.reshape(-1, *moves.shape[-2:]).any(0)
        asking, asked = (int(over_heads.any(axis).sum()) for axis in (1, 0))
        kind = "query" if asking == 1 < asked else "key" if asked == 1 < asking else "mixed"
        return Row(kind, attention=event.attention, across=_is_across(event))
    columns = _columns(moves)
    if int(moves.any(-1).sum()) != 1:
        return Row("mixed", event.name)
    if len(columns) > 1:
        return Row("spread", event.name)
    up, down = (float(step[moves]) for step in steps)
    straight = abs(up + down) < 1e-6 * max(abs(up), abs(down))
    return Row("feed", event.name, columns, straight)


def _columns(moves: Tensor) -> tuple[int, ...]:
    return tuple(moves.reshape(-1, moves.shape[-1]).any(0).nonzero().flatten().tolist())


def _is_across(event: Event) -> bool:
    asking, asked = event.lengths
    return abs(asking - asked) > 1  # one more is a sink
