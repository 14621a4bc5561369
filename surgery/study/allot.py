"""How many steps each arm gets, where not steps are equal but what they cost: measured before the first run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.engine.scheduler import named, one_thread
from surgery.errors import StateError
from surgery.spec._frozen import MAX_INTEGER
from surgery.study.cells import Cell, final_cells
from surgery.study.results import plain_json, write_atomically
from surgery.study.spec import FROZEN, StudySpec
from surgery.study.turns import Turns

if TYPE_CHECKING:
    from surgery.training import Session

__all__ = ["ALLOTTED", "allotted", "counted_work", "is_scaled", "timed_steps"]

ALLOTTED = "budget.json"
"""What a step of each arm costs, and how many each arm gets: kept, because every cell's key depends on it."""


_RESTORE = "restore it: every finished cell was run with its numbers"


def is_scaled(study: StudySpec) -> bool:
    """Whether arms get different numbers of steps by design. Equal steps are equal tokens: batches are shared."""
    return study.budget.axis in ("flops", "seconds")


def allotted(
    study: StudySpec, folder: Path, measured: Callable[[Sequence[Cell]], tuple[int, Mapping[str, float]]]
) -> Mapping[str, int] | None:
    """Return arm -> steps: the reference's own number, and for the others as many as cost the same; None if all alike.

    What was measured is kept in `folder`/budget.json, so that a study that goes on goes on with the same numbers.

    Args:
        study: the study.
        folder: where its results lie.
        measured: one cell of each arm that trains -> steps of the reference, and arm -> the cost of one step.

    Raises:
        StateError: the file cannot be read, belongs to another study, or a step cost nothing.
    """
    if not is_scaled(study):
        return None
    path = folder / ALLOTTED
    if not path.exists():
        any_rate = {arm: spec.learning_rate[0] for arm, spec in study.arms.items()}
        cells = {cell.arm: cell for cell in final_cells(study, any_rate) if cell.trains}
        steps, costs = measured(list(cells.values()))
        if free := [arm for arm, cost in costs.items() if not cost > 0]:
            hint = (
                "write budget: {axis: steps}; the loss at equal amounts of everything else is re-read from the curves"
            )
            raise StateError(f"a step of {free[0]!r} costs nothing that could be counted", "budget.axis", hint)
        whole = steps * costs[study.reference]
        kept = {
            "study": study.hash,
            "axis": study.budget.axis,
            "reference": study.reference,
            "per_step": dict(costs),
            "steps": {arm: max(1, round(whole / cost)) for arm, cost in costs.items()},
        }
        write_atomically(path, json.dumps(kept, indent=1) + "\n")
    return _read(path, study)


def _read(path: Path, study: StudySpec) -> Mapping[str, int]:
    try:
        kept = plain_json(path.read_bytes())
        steps: dict[str, int] = {str(arm): number for arm, number in kept["steps"].items()}
        is_own = kept["study"] == study.hash
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise StateError("this file does not say how many steps each arm gets", str(path), _RESTORE) from None
    for arm, number in steps.items():
        # True is 1 to Python, and 7.9 steps would be 7: neither was written by a study.
        if type(number) is not int or not 0 < number <= MAX_INTEGER:
            what = f"this file gives {arm!r} {str(number)[:40]!r} steps, which is no whole number from 1 on"
            raise StateError(what, str(path), _RESTORE)
    if not is_own or not {*study.arms, *((FROZEN,) if study.head else ())} <= set(steps):
        raise StateError("this file belongs to another study", str(path), "restore the one of this study")
    return steps


def counted_work(cells: Sequence[Cell], session_of: Callable[[Cell], Session]) -> dict[str, float]:
    """Return arm -> floating-point operations of one step, forward and backward, by PyTorch's counter.

    All arms are counted on the same batch: the first one of the first cell's seed.

    Raises:
        SurgeryError: what went wrong, with the arm.
    """
    from surgery.operation import operate
    from surgery.training.memory import flop_counter
    from surgery.training.order import Order
    from surgery.training.seeds import preserved_randomness
    from surgery.training.stepper import Stepper

    found: dict[str, float] = {}
    for cell in cells:
        try:
            session, training = session_of(cell), cell.spec.training
            assert training is not None
            order = Order(session.examples["train"], 1, training.batch_size, cells[0].seed)
            batch = session.collator([order[position] for position in range(len(order))])
            with (
                one_thread(),
                preserved_randomness(),
                operate(session.model, session.plan, registry=session.registry) as operation,
            ):
                stepper = Stepper(session, operation, training, batch)
                counter = flop_counter()
                with counter:
                    stepper.step()
                found[cell.arm] = float(counter.get_total_flops())
        except Exception as error:
            raise named(cell, error) from error
        finally:
            session.model.zero_grad(set_to_none=True)
            session.model.eval()
    return found


def timed_steps(turns: Mapping[str, Turns], *, cpu: bool) -> dict[str, float]:
    """Return arm -> seconds of one step, the median over its turns: of CPU time, or of the wall clock."""
    return {arm: statistics.median(told["step_cpu" if cpu else "step"]) for arm, told in turns.items()}
