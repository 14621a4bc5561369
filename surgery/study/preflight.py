"""What is found out before the first cell runs: mistakes of any arm, unknown metrics, and what a step costs."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.engine.scheduler import named
from surgery.errors import CheckpointError, DataError, Problem, SpecError, nearest
from surgery.registry import Registry
from surgery.study.allot import counted_work, timed_steps
from surgery.study.cells import Cell
from surgery.study.conditions import refuse_one_split_twice
from surgery.study.forgetting.along import known_of
from surgery.study.run_cell import session_of
from surgery.study.spec import StudySpec
from surgery.study.turns import Tell, Turns, take_turns

__all__ = ["clocked", "measured_steps", "preflight", "refuse_unknown_metrics"]

_FEW = 8  # examples that show which metrics a task has


def preflight(cells: Sequence[Cell], registry: Registry) -> None:
    """Load and plan one cell of every arm, so that a mistake in the last arm is told before the first one trains.

    Raises:
        SurgeryError: what is wrong, with the arm.
    """
    for cell in {cell.arm: cell for cell in cells}.values():
        try:
            session = session_of(cell, registry)
            refuse_one_split_twice(session)
            known_of(cell, session)
        except (CheckpointError, DataError):  # of what all arms share: no arm is to blame
            raise
        except Exception as error:
            raise named(cell, error) from error


def clocked(cells: Sequence[Cell], registry: Registry, tell: Tell | None = None) -> dict[str, Turns]:
    """Return arm -> times of its steps and forward passes: one cell of each arm that trains takes turns.

    Raises:
        SurgeryError: what went wrong.
    """
    arms = {cell.arm: cell for cell in cells if cell.trains}
    return take_turns(list(arms.values()), lambda cell: session_of(cell, registry), tell)


def measured_steps(study: StudySpec, cells: Sequence[Cell], registry: Registry) -> tuple[int, dict[str, float]]:
    """Return the reference's number of steps, and arm -> what one step costs on the axis of the study's budget.

    Raises:
        SurgeryError: what went wrong.
    """
    import torch

    from surgery.training.fit import steps_of

    reference = next(cell for cell in cells if cell.arm == study.reference)
    assert reference.spec.training is not None
    steps = steps_of(session_of(reference, registry), reference.spec.training)
    if study.budget.axis == "flops":
        return steps, counted_work(cells, lambda cell: session_of(cell, registry))
    return steps, timed_steps(clocked(cells, registry), cpu=not torch.cuda.is_available())


def refuse_unknown_metrics(study: StudySpec, cell: Cell, registry: Registry) -> None:
    """Refuse further metrics that the task does not score: told from a few validation examples.

    Raises:
        SpecError: the metric, with the nearest one that the task scores.
    """
    if not study.metrics:
        return
    from surgery.training.fit import evaluate

    known = evaluate(session_of(cell, registry), "validation", limit=_FEW).metrics
    problems = [
        Problem(f"the task {study.task.kind!r} has no metric {name!r}", f"metrics[{index}]", nearest(name, known))
        for index, name in enumerate(study.metrics)
        if name not in known
    ]
    if problems:
        raise SpecError.of(problems)
