"""The driver: which cells a study still needs, stage by stage, and what is told about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from surgery.engine.scheduler import Scheduler
from surgery.errors import StateError
from surgery.study.cells import Cell, Steps, final_cells, rebuilt, tuning_cell, tuning_cells
from surgery.study.choose import Choice, choose_rates, next_rates
from surgery.study.record import CellRecord
from surgery.study.results import RESULTS, Results
from surgery.study.spec import StudySpec

__all__ = ["Driver", "Progress"]


class Progress(Protocol):
    """Whoever wants to know how far a study is: cells done, cells in all, and what just happened."""

    def __call__(self, done: int, total: int, description: str) -> None: ...


@dataclass
class Driver:
    """One run of the driver.

    Attributes:
        study: what is to be run.
        results: what is finished, in the study's locked folder.
        runner: a cell -> its record.
        engine: where cells run.
        progress: told of every cell.
        steps: arm -> how many steps it gets, where that is not the same for all.
    """

    study: StudySpec
    results: Results
    runner: Callable[[Cell], CellRecord]
    engine: Scheduler
    progress: Progress | None
    steps: Steps = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to run."""
        return all(cell.key in self.results.records for stage in self._stages_known() for cell in stage)

    @property
    def foreseen(self) -> list[Cell]:
        """Every cell that is certain, the final ones at any of their rates: how many they are does not depend on it."""
        any_rate = {arm: spec.learning_rate[0] for arm, spec in self.study.arms.items()}
        return [*tuning_cells(self.study, self.steps), *final_cells(self.study, any_rate, self.steps)]

    @property
    def total(self) -> int:
        """How many cells are certain."""
        return len(self.foreseen)

    def run(self) -> tuple[list[Cell], tuple[Choice, ...]]:
        """Run what is left; return all cells in their final order, and the chosen learning rates."""
        cells: list[Cell] = []
        total = self.total
        for number, stage in enumerate(self._stages()):
            # Cells beyond a grid are known only when the grid has been run.
            total += len(stage) if number and stage[0].phase == "tune" else 0
            self._run(stage, len(cells), total)
            cells += stage
        return cells, choose_rates(self.study, self._tuned(cells))

    def _stages(self) -> Iterator[list[Cell]]:
        """Yield the tuning cells, those beyond the grids as often as a best lies at an edge, and the final cells.

        Each stage follows from the results of those before it, so they must be run before the next one is asked for.
        """
        tuning = tuning_cells(self.study, self.steps)
        if tuning:
            yield tuning
        while further := next_rates(self.study, self._tuned(tuning)):
            stage = [tuning_cell(self.study, arm, rate, self.steps) for arm, rate in further.items()]
            tuning += stage
            yield stage
        choices = choose_rates(self.study, self._tuned(tuning))
        yield final_cells(self.study, {choice.arm: choice.rate for choice in choices}, self.steps)

    def _stages_known(self) -> Iterator[list[Cell]]:
        """Yield the stages up to and with the first one that is not finished."""
        for stage in self._stages():
            yield stage
            if any(cell.key not in self.results.records for cell in stage):
                return

    def _tuned(self, cells: Sequence[Cell]) -> list[CellRecord]:
        return [cast("CellRecord", self.results.records[cell.key]) for cell in cells if cell.phase == "tune"]

    def refuse_other_versions(self, now: Mapping[str, str]) -> None:
        """Refuse to go on with other software: one study of two versions compares the versions, too."""
        for record in self.results.records.values():
            then = record["versions"]
            differing = [
                f"{name} {then[name]} then, {now[name]} now" for name in now if then.get(name, now[name]) != now[name]
            ]
            if differing:
                hint = "install those versions again, or choose another --out"
                raise StateError(
                    f"the study was begun with other software: {'; '.join(differing)}", str(self.results.folder), hint
                )

    def refuse_foreign(self) -> None:
        """Refuse lines that are no results of this study's cells: they would lie in its file and mean nothing.

        Raises:
            StateError: the first such line, and what it says that it is.
        """
        for number, (key, record) in enumerate(self.results.records.items(), 1):
            cell = rebuilt(self.study, record, self.steps)
            if cell is None or cell.key != key:
                told = f"{record.get('arm')}, seed {record.get('seed')}, learning rate {record.get('learning_rate')}"
                raise StateError(
                    f"the line of cell {key[:8]} ({told}) is no result of this study",
                    f"{self.results.folder / RESULTS}: result {number}",
                    "take the line out and keep it with the study that it came from; nothing was changed",
                )

    def _run(self, cells: Sequence[Cell], before: int, total: int) -> None:
        left = [cell for cell in cells if cell.key not in self.results.records]
        done = before + len(cells) - len(left)
        if done > before:
            self.tell(done, total, f"{len(cells) - len(left)} cells were finished before")
        if not left:
            return
        self.tell(done, total, f"{left[0].title} begins")
        for cell, record in self.engine.map(self.runner, left):
            self.results.append(cast("dict[str, Any]", record))
            done += 1
            self.tell(done, total, cell.title)

    def tell(self, done: int, total: int, description: str) -> None:
        """Tell the progress, where somebody listens."""
        if self.progress is not None:
            self.progress(done, total, description)
