"""Runners that stand in for training, importable by worker processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import make_directions, make_record, make_turns

from surgery.registry import Registry, load_registry
from surgery.study import study as driver
from surgery.study.cells import Cell
from surgery.study.overlaps import keep_directions
from surgery.study.run_cell import versions

ITEMS = 200


def text_registry() -> Registry:
    """The registry that made-up classification studies need."""
    import surgery_text_classification

    return load_registry(extra=[surgery_text_classification], entry_points=False)


@dataclass
class Stub:
    """Returns a made-up record after `seconds`, and leaves a line in `log` when it begins."""

    log: Path
    seconds: float = 0.0
    fail_on: str = ""
    die_on: str = ""
    folder: Path | None = None

    def __call__(self, cell: Cell) -> Any:
        with self.log.open("a") as file:
            file.write(f"{cell.key} {os.getpid()}\n")
        time.sleep(self.seconds)
        if self.fail_on and self.fail_on in cell.title:
            raise ValueError("the plugin tripped")
        if self.die_on and self.die_on in cell.title:
            os._exit(9)
        if cell.weights and self.folder is not None:
            keep_directions(make_directions(cell), cell, self.folder)
        timing = {"step": np.random.default_rng().random(), "step_low": None, "step_high": None, "step_cpu": None}
        return make_record(
            cell, ITEMS, versions=versions(text_registry()), timing={**timing, "total": time.perf_counter()}
        )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block, studies run this stub and load no model."""
        before = driver.CellRunner, driver.preflight, driver.clocked
        driver.CellRunner, driver.preflight = (
            (lambda folder, registry: replace(self, folder=folder)),
            (lambda cells, registry: None),
        )  # type: ignore[assignment,misc]
        driver.clocked = lambda cells, registry, tell=None: make_turns(cells)
        try:
            yield
        finally:
            driver.CellRunner, driver.preflight, driver.clocked = before  # type: ignore[misc]

    def begun(self) -> list[str]:
        """Keys of the cells that were begun, in order."""
        return [line.split()[0] for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def processes(self) -> set[int]:
        """Processes that began cells."""
        return {int(line.split()[1]) for line in self.log.read_text().splitlines()} if self.log.exists() else set()
