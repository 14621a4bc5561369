"""The clock: arms take turns, there and back again, so that a machine that drifts slows all of them alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from typing_extensions import TypedDict

from surgery.engine.scheduler import one_thread
from surgery.study.cells import Cell
from surgery.study.results import plain_json, write_atomically

if TYPE_CHECKING:
    from surgery.training import Session

__all__ = ["TIMINGS", "Clock", "Spread", "Tell", "Turns", "read_turns", "take_turns", "write_turns"]

TIMINGS = "timings.json"
_TURNS = 4  # A B C, C B A, and once more
_SECONDS = 0.5  # of steps in one turn, the fewest and the most of them
_FEWEST, _MOST = 2, 10
_REPEATS = 5  # forward passes of one example, in every state of every turn


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles, in seconds, of `count` measurements."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        if not values:
            return None
        low, median, high = (float(value) for value in np.quantile(np.array(values), (0.25, 0.5, 0.75)))
        return cls(median, low, high, len(values))


class Turns(TypedDict):
    """What the clock said of one arm, in seconds, in the order of the turns.

    `step` and `step_cpu` are training steps (wall and CPU time); `base`, `unmerged` and `merged` are forward passes of
    one example through the base, through base and adapters, and through the merged weights.
    """

    step: list[float]
    step_cpu: list[float]
    base: list[float]
    unmerged: list[float]
    merged: list[float]


@dataclass(frozen=True, slots=True)
class Clock:
    """The same as medians and quartiles."""

    step: Spread | None = None
    step_cpu: Spread | None = None
    base: Spread | None = None
    unmerged: Spread | None = None
    merged: Spread | None = None

    @classmethod
    def of(cls, turns: Mapping[str, Any] | None) -> Clock | None:
        if turns is None:
            return None
        return cls(**{name: Spread.of(turns.get(name, ())) for name in Turns.__annotations__})


Tell: TypeAlias = Callable[[int, int, str], None]
"""Told before each turn: its number from 1 on, how many there are, and whose it is."""


def take_turns(
    cells: Sequence[Cell], session_of: Callable[[Cell], Session], tell: Tell | None = None
) -> dict[str, Turns]:
    """Return arm -> what the clock said; one cell of each arm.

    What an adapter has learned does not change how long it takes, so the adapters are fresh ones.
    """
    found = {cell.arm: Turns(step=[], step_cpu=[], base=[], unmerged=[], merged=[]) for cell in cells}
    with one_thread():
        for turn in range(_TURNS):
            for index, cell in enumerate(cells if turn % 2 == 0 else cells[::-1], 1):
                if tell is not None:
                    tell(turn * len(cells) + index, _TURNS * len(cells), cell.arm)
                _turn(session_of(cell), cell, found[cell.arm])
    return found


def _turn(session: Session, cell: Cell, told: Turns) -> None:
    from surgery.operation import operate
    from surgery.training.order import Order
    from surgery.training.seeds import preserved_randomness
    from surgery.training.stepper import Stepper, latencies

    training = cell.spec.training
    assert training is not None
    order = Order(session.examples["train"], 1, training.batch_size, cell.seed)
    batch = session.collator([order[position] for position in range(len(order))])
    example = session.examples["validation"][0]
    model = session.model
    use_cache = getattr(model.config, "use_cache", None)
    with preserved_randomness():
        try:
            if use_cache is not None:
                model.config.use_cache = False
            told["base"] += latencies(session, example, _REPEATS)
            with operate(model, session.plan, registry=session.registry) as operation:
                stepper = Stepper(session, operation, training, batch)
                stepper.step()
                steps = [stepper.step() for _ in range(_FEWEST)]
                while len(steps) < _MOST and sum(wall for wall, _ in steps) < _SECONDS:
                    steps.append(stepper.step())
                told["step"] += [wall for wall, _ in steps]
                told["step_cpu"] += [cpu for _, cpu in steps]
                model.eval()
                told["unmerged"] += latencies(session, example, _REPEATS)
                operation.merge()
                told["merged"] += latencies(session, example, 2 * _REPEATS)
                operation.unmerge()
                told["unmerged"] += latencies(session, example, _REPEATS)
            told["base"] += latencies(session, example, _REPEATS)
        finally:
            if use_cache is not None:
                model.config.use_cache = use_cache
            model.zero_grad(set_to_none=True)
            model.eval()


def write_turns(folder: Path, study: str, found: Mapping[str, Turns]) -> None:
    """Keep what the clock said beside the results of the study with the hash `study`."""
    write_atomically(folder / TIMINGS, json.dumps({"study": study, "arms": found}, indent=1) + "\n")


def read_turns(folder: Path, study: str) -> Mapping[str, Turns] | None:
    """Return what the clock said; None where it was not asked, for another study, or the file cannot be read."""
    try:
        kept = plain_json((folder / TIMINGS).read_bytes())
        arms: Mapping[str, Turns] = kept["arms"]
        return arms if kept["study"] == study and all(map(_are_times, arms.values())) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _are_times(told: Mapping[str, Any]) -> bool:
    """Whether these are lists of seconds: numbers from 0 on."""
    return all(type(value) in (int, float) and value >= 0 for name in Turns.__annotations__ for value in told[name])
