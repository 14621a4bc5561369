"""Comparing: choose learning rates, run every arm on every seed, and write down what may be concluded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter

from surgery.engine.scheduler import InProcess, Scheduler, local_engine
from surgery.errors import SpecError, StateError
from surgery.registry import Registry, asked
from surgery.study.allot import allotted
from surgery.study.cells import Cell
from surgery.study.driver import Driver, Progress
from surgery.study.overlaps import subspace_overlaps, unreadable_directions
from surgery.study.overview import overview
from surgery.study.preflight import clocked, measured_steps, preflight, refuse_unknown_metrics
from surgery.study.record import CellRecord, fault_of
from surgery.study.results import (
    RESULTS,
    STUDY,
    Record,
    Results,
    digest_of,
    plain_json,
    read_records,
    write_atomically,
)
from surgery.study.run_cell import CellRunner, forget_sessions, versions
from surgery.study.spec import FROZEN, MAJORITY, StudySpec, load_study
from surgery.study.summary import Summary, summarise
from surgery.study.tables import write_tables
from surgery.study.turns import Turns, read_turns, write_turns
from surgery.study.words import sentence

__all__ = ["SUMMARY", "Comparison", "Progress", "compare", "read_comparison"]

SUMMARY = "summary.json"
WRITTEN = "study.yaml"
_OVERHEAD = 900 << 20  # Python, torch, transformers and one batch
_RETRIES = 1  # of a cell whose worker died: a second death in the same cell is told
_COPIES = 8  # base, snapshot, trained copy, gradients, two moments, and two of activations


@dataclass(frozen=True)
class Comparison:
    """A finished study.

    Attributes:
        folder: `results.jsonl`, `study.json`, `study.yaml`, `summary.json`, `tables/*.csv` and `adapters/` lie in it.
        study: what was compared.
        summary: the numbers.
        records: every cell's record, in order.
        note: what was repaired in the results file before going on; empty if nothing.
    """

    folder: Path
    study: StudySpec
    summary: Summary
    records: tuple[CellRecord, ...]
    note: str = ""

    @property
    def sentences(self) -> tuple[str, ...]:
        """The verdict lines: arms first, then the baselines."""
        rows = [row for row in self.summary.rows if row.verdict is not None]
        ordered = sorted(rows, key=lambda row: row.kind != "arm")
        return tuple(sentence(self.summary, row) for row in ordered)

    def __str__(self) -> str:
        blocked = self.summary.blocked
        why = [f"No verdict can be given: {blocked}.", ""] if blocked else []
        return "\n".join([overview(self.summary), "", *why, *self.sentences])


def compare(
    study: StudySpec | Path | str,
    out: Path | str,
    *,
    registry: Registry,
    workers: int | None = None,
    progress: Progress | None = None,
    engine: Scheduler | None = None,
) -> Comparison:
    """Run a study, or what is left of it, and write its numbers.

    Cells that `out` already holds are not run again, so a study that was stopped in any way goes on where it was.

    Args:
        study: the study or its file.
        out: a new or empty folder, or the folder of this very study.
        registry: the installed plugins.
        workers: processes to use on this machine; None chooses by cores and memory, 1 stays in this process.
        progress: told when a cell is finished.
        engine: where cells run; None means this machine.

    Raises:
        SpecError: the study is not valid.
        StateError: `out` belongs to another study, or another process is at work in it.
        SurgeryError: a cell failed; the error names it, and what was finished is kept.
    """
    _refuse_several()
    if not isinstance(study, StudySpec):
        study = load_study(study, registry)
    folder = Path(out)
    identity = {"hash": study.hash, "name": study.name, "spec": json.loads(study.canonical_json())}
    forget_sessions()  # of another study in this process: its files may have other rows by now
    with Results.opened(folder, identity, fault_of) as results:
        owned = engine or local_engine(
            _most_cells(study), workers or _one_per_gpu(), _job_bytes(study, registry), retries=_RETRIES
        )
        try:
            steps = allotted(study, folder, lambda cells: measured_steps(study, cells, registry))
            driver = Driver(study, results, CellRunner(folder, registry), owned, progress, steps)
            if not driver.is_finished:
                driver.refuse_other_versions(versions(registry))
            driver.refuse_foreign()
            if not driver.is_finished:
                driver.tell(0, driver.total, "planning every arm")
                preflight(driver.foreseen, registry)
                refuse_unknown_metrics(study, driver.foreseen[0], registry)
                if not isinstance(owned, InProcess):
                    forget_sessions()
            order, choices = driver.run()
        finally:
            if engine is None:
                owned.close()
        results.settle([cell.key for cell in order])
        records = _typed([results.records[cell.key] for cell in order])
        turns = read_turns(folder, study.hash)
        # What an earlier version finished stays as it was; its model may be far away.
        if turns is None and all("cost" in record for record in records):
            turns = _clock(study, order, registry, folder, progress)
        summary = summarise(study, records, choices, _score(study, registry), turns)
        # The file as it was settled: in the order of the cells, then whatever else was tried.
        digest = digest_of(read_records(folder / RESULTS)[0].values())
        summary = replace(summary, overlaps=subspace_overlaps(order, folder), results=digest)
        write_atomically(folder / SUMMARY, _json(summary))
        write_atomically(folder / WRITTEN, study.to_yaml())
        write_tables(folder / "tables", summary, records)
        note = "; ".join(filter(None, (results.note, _died(owned), _left_out(order, folder))))
    return Comparison(folder, study, summary, records, note)


def read_comparison(folder: Path | str) -> Comparison:
    """Return the finished study in `folder`, from its files alone: the summary as it was written, not made anew.

    Raises:
        StateError: there is no finished study, or its files contradict each other.
    """
    folder = Path(folder)
    for name in (STUDY, RESULTS, SUMMARY):
        if not (folder / name).is_file():
            raise StateError(
                f"the folder holds no finished study: {name} is missing", str(folder), "run surgery compare"
            )
    try:
        known = plain_json((folder / STUDY).read_bytes())
        study, digest = StudySpec.model_validate(known["spec"]), known["hash"]
        summary = TypeAdapter(Summary).validate_python(plain_json((folder / SUMMARY).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "run surgery compare again: it writes the file anew from the results"
        raise StateError(
            f"a file of the study cannot be read: {str(error).splitlines()[0]}", str(folder), hint
        ) from None
    # As it was written: a later version gives studies more keys, and so other hashes.
    if summary.study != digest:
        raise StateError(f"{SUMMARY} belongs to another study", str(folder), "run surgery compare again")
    study = _as_written(folder / WRITTEN, study)
    records, _ = read_records(folder / RESULTS, fault_of)
    _refuse_contradictions(summary, study, records.values(), folder / SUMMARY)
    return Comparison(folder, study, summary, _typed(list(records.values())))


def _refuse_contradictions(summary: Summary, study: StudySpec, records: Iterable[Record], path: Path) -> None:
    """Refuse a summary that is not of this study, or not of these results."""
    known = sorted([*study.arms, FROZEN])
    # Tasks without classes have no majority.
    arms = sorted(row.arm for row in summary.rows if row.kind != "majority" or row.arm != MAJORITY)
    declared = (summary.reference, summary.seeds, summary.margin) == (study.reference, study.seeds, study.margin)
    what = ""
    if not declared or arms != known:
        what = "its rows, seeds, margin or reference are not those of the study"
    elif [row.arm for row in summary.rows if row.kind == "reference"] != [study.reference]:
        what = "its reference is not that of the study"
    elif summary.results and summary.results != digest_of(records):
        what = f"{RESULTS} was changed after it was written"
    if what:
        raise StateError(what, str(path), "run surgery compare again: it writes the file anew from the results")


def _left_out(order: Sequence[Cell], folder: Path) -> str:
    """Return which files of directions were passed over, for the user to read."""
    names = unreadable_directions(order, folder)
    return f"directions that cannot be read were left out: {', '.join(names)}" if names else ""


def _as_written(path: Path, study: StudySpec) -> StudySpec:
    """Return the equal study in `path`, which still knows its order and what was left to defaults; else `study`."""
    try:
        found = load_study(path)
    except SpecError:  # an older folder has no such file, and the numbers need none
        return study
    return found if found.hash == study.hash else study


def _died(engine: Scheduler) -> str:
    """Return which cells were run again because a worker died, for the user to read."""
    again = tuple(getattr(engine, "again", ()))
    return f"a worker process died; run again: {', '.join(dict.fromkeys(again))}" if again else ""


def _clock(
    study: StudySpec, order: Sequence[Cell], registry: Registry, folder: Path, progress: Progress | None
) -> Mapping[str, Turns]:
    """Have the arms take turns on the clock, when nothing else of the study runs any more, and keep what it says."""

    def tell(turn: int, turns: int, arm: str) -> None:
        if progress is not None:
            progress(len(order), len(order), f"arms take turns on the clock: {arm}, {turn} of {turns}")

    turns = clocked([cell for cell in order if cell.phase == "final"], registry, tell)
    write_turns(folder, study.hash, turns)
    return turns


def _most_cells(study: StudySpec) -> int:
    return max(sum(len(arm.learning_rate) for arm in study.arms.values()), len(study.seeds) * (len(study.arms) + 1))


def _refuse_several() -> None:
    """Refuse to be one of several processes that a launcher started: each would run the whole study."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        hint = "start it without accelerate launch or torchrun; --workers N runs several cells at once"
        raise StateError(f"a study runs each cell in one process, and a launcher started {count}", hint=hint)


def _one_per_gpu() -> int | None:
    """Return 1 where there is a GPU: cells that share one slow each other down and spoil the times."""
    import torch

    return 1 if torch.cuda.is_available() else None


def _typed(records: Sequence[object]) -> tuple[CellRecord, ...]:
    return cast("tuple[CellRecord, ...]", tuple(records))


def _score(study: StudySpec, registry: Registry) -> Any:
    return asked(registry.task(study.task.kind), registry).score


def _json(summary: Summary) -> str:
    return TypeAdapter(Summary).dump_json(summary, indent=1).decode() + "\n"


def _job_bytes(study: StudySpec, registry: Registry) -> int:
    """Return the memory that one cell is expected to need: what decides how many run side by side."""
    from surgery.training import resolve

    source = resolve(study.model.ref, registry)
    files = Path(source).glob("*.safetensors") if isinstance(source, Path) else ()
    return _OVERHEAD + _COPIES * sum(file.stat().st_size for file in files)
