"""A cell: one independent run of a study, named by the hash of everything that decides its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

from surgery.spec import Rule, Spec
from surgery.study.spec import FROZEN, Forgetting, StudySpec

__all__ = ["Cell", "Phase", "Steps", "final_cells", "rebuilt", "tuning_cell", "tuning_cells"]

Phase: TypeAlias = Literal["tune", "final"]
Steps: TypeAlias = Mapping[str, int] | None

RECORD_FORMAT = 1
"""Raised when the meaning of a record changes, so that old records are never mistaken for new ones."""


@dataclass(frozen=True)
class Cell:
    """One run: an arm, a seed, a learning rate, and whether it tunes or reports.

    Attributes:
        arm: name of the arm, or of the study's own frozen row.
        phase: `tune` sees train and validation only; `final` also reads the test split, once.
        seed: decides head and adapter initialisation, data order and dropout.
        rate: peak learning rate of the adapters.
        spec: the whole spec of the run.
        trains: False for the untouched base model, which is only evaluated.
        forgetting: what is measured before and after, in the final phase.
        probe: how many validation examples measure the change by merging.
        weights: whether it is measured what changed in the weights.
    """

    arm: str
    phase: Phase
    seed: int
    rate: float
    spec: Spec
    trains: bool = True
    forgetting: Forgetting | None = None
    probe: int = 32
    weights: bool = False

    @cached_property
    def key(self) -> str:
        """The first 128 bits, in hex, of the sha256 of everything above."""
        decided = {
            "format": RECORD_FORMAT,
            "arm": self.arm,
            "phase": self.phase,
            "seed": self.seed,
            "rate": self.rate,
            "spec": json.loads(self.spec.canonical_json()),
            "trains": self.trains,
            "forgetting": _of(self.forgetting),
            "probe": self.probe,
            "weights": self.weights,
        }
        text = json.dumps(decided, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def title(self) -> str:
        """How progress and errors call the cell."""
        rate = f", learning rate {self.rate:g}" if self.trains else ""
        return f"{self.arm}, seed {self.seed}{rate} ({'tuning' if self.phase == 'tune' else 'final run'})"

    @property
    def folder(self) -> str:
        """Name of the cell's folder of adapters: readable, and unique through the key."""
        return f"{self.arm}-seed{self.seed}-{self.key[:8]}"

    def __repr__(self) -> str:
        return f"Cell({self.title}, {self.key[:8]})"

    def __getstate__(self) -> dict[str, object]:
        # The cached key must be computed again where the cell arrives: another version may hash differently.
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _of(forgetting: Forgetting | None) -> object:
    """Return what decides about forgetting: data alone stand for themselves, as when there was nothing else."""
    told = None if forgetting is None else forgetting.model_dump(mode="json")
    return told["data"] if told is not None and set(told) == {"data"} else told


def tuning_cells(study: StudySpec, steps: Steps = None) -> list[Cell]:
    """Return the runs that choose learning rates: every grid of at least two points, on the tuning seed.

    Args:
        study: the study.
        steps: arm -> how many steps it gets, where that is not the same for all.
    """
    by_arm = [
        [tuning_cell(study, name, rate, steps) for rate in arm.learning_rate]
        for name, arm in study.arms.items()
        if arm.swept
    ]
    longest = max((len(cells) for cells in by_arm), default=0)
    return [cells[index] for index in range(longest) for cells in by_arm if index < len(cells)]


def tuning_cell(study: StudySpec, arm: str, rate: float, steps: Steps = None) -> Cell:
    """Return the run that tries one learning rate of `arm`."""
    return _cell(study, arm, "tune", study.tuning_seed, rate, steps)


def final_cells(study: StudySpec, rates: Mapping[str, float], steps: Steps = None) -> list[Cell]:
    """Return the runs that are reported: every arm and the frozen row on every seed.

    Args:
        rates: arm -> its chosen learning rate.
        steps: arm -> how many steps it gets, where that is not the same for all.
    """
    by_seed: list[list[Cell]] = []
    for index, seed in enumerate(study.seeds):
        row = [_cell(study, name, "final", seed, rates[name], steps) for name in study.arms]
        if study.head:
            row.insert(0, _frozen(study, seed, steps))
        # There and back again (ABBA): a clock or a neighbour that drifts then slows all arms alike.
        by_seed.append(row if index % 2 == 0 else row[::-1])
    cells = [cell for row in by_seed for cell in row]
    return cells if study.head else [_untouched(study), *cells]


def rebuilt(study: StudySpec, record: Mapping[str, Any], steps: Steps = None) -> Cell | None:
    """Return the cell of `study` that a record says it is of; None if the study has no such arm or seed."""
    arm, phase, seed, rate = (record.get(key) for key in ("arm", "phase", "seed", "learning_rate"))
    if not isinstance(seed, int) or not isinstance(rate, int | float) or not isinstance(arm, str):
        return None
    if phase == "tune":
        is_known = arm in study.arms and seed == study.tuning_seed and rate > 0
        return _cell(study, arm, "tune", seed, rate, steps) if is_known else None
    if phase != "final" or seed not in study.seeds:
        return None
    if arm == FROZEN:
        return _frozen(study, seed, steps) if study.head else _untouched(study)
    return _cell(study, arm, "final", seed, rate, steps) if arm in study.arms and rate > 0 else None


def _cell(study: StudySpec, arm: str, phase: Phase, seed: int, rate: float, steps: Steps = None) -> Cell:
    # Head rules stand first, so that an arm that adapts everything does not adapt the head in its own way.
    return _built(study, arm, phase, seed, rate, (*study.head, *study.arms[arm].rules), steps)


def _frozen(study: StudySpec, seed: int, steps: Steps) -> Cell:
    return _built(study, FROZEN, "final", seed, study.head_learning_rate or 0.0, study.head, steps)


def _built(  # noqa: PLR0913 - what makes a cell
    study: StudySpec, arm: str, phase: Phase, seed: int, rate: float, rules: tuple[Rule, ...], steps: Steps
) -> Cell:
    spec = Spec(
        version=1,
        name=arm,
        seed=seed,
        model=study.model,
        task=study.task,
        data=study.data,
        training=study.training_of(rate, None if steps is None else steps[arm]),
        rules=rules,
    )
    # Forgetting belongs to the report; tuning must stay cheap.
    forgetting = study.forgetting if phase == "final" else None
    return Cell(arm, phase, seed, rate, spec, True, forgetting, study.probe, phase == "final" and study.looks_at(seed))


def _untouched(study: StudySpec) -> Cell:
    """The base model as it is: nothing to train, so one seed says everything."""
    first = next(iter(study.arms))
    like = _cell(study, first, "final", study.seeds[0], study.arms[first].learning_rate[0])
    return replace(like, arm=FROZEN, rate=0.0, trains=False, weights=False)
