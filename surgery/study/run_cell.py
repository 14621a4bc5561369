"""Running one cell: train, score, save, merge and back, and report it all as one record."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.errors import DataError
from surgery.registry import Registry
from surgery.study.cells import Cell
from surgery.study.conditions import conditions
from surgery.study.forgetting.along import Known, known_of
from surgery.study.overlaps import COUNT, keep_directions
from surgery.study.predicted import step_cost
from surgery.study.record import Budget, CellRecord, CurvePoint, Lost, Majority, Memory, Timing
from surgery.study.weights import changed_weights

if TYPE_CHECKING:
    from surgery.operation import Operation
    from surgery.training import Evaluation, FitResult, Session

__all__ = [
    "ADAPTERS",
    "CellRunner",
    "forget_sessions",
    "run_cell",
    "session_of",
    "versions",
]

ADAPTERS = "adapters"
"""Folder, inside a study's, of the adapter checkpoints of final runs."""

_ENOUGH_WARM = 1


@dataclass
class CellRunner:
    """`run_cell` with everything but the cell filled in: what a scheduler sends to its workers.

    Attributes:
        folder: the study's folder.
        registry: the installed plugins.
    """

    folder: Path
    registry: Registry

    def __call__(self, cell: Cell) -> CellRecord:
        return run_cell(cell, self.folder, self.registry)


def forget_sessions() -> None:
    """Let go of the model that `preflight` loaded, where other processes do the work."""
    _warm.clear()


def run_cell(cell: Cell, folder: Path, registry: Registry) -> CellRecord:
    """Run one cell and return its record. Only files of the cell's own name are written below `folder`."""
    from surgery.training.fit import evaluate
    from surgery.training.hashes import tensors_hash

    start = time.perf_counter()
    session = session_of(cell, registry)
    known = known_of(cell, session)
    state = tensors_hash(session.model)  # of this very run, whatever ran in this process before
    lost = known.before(session) if known else None
    if cell.trains:
        record = _trained(cell, session, known, lost, folder)
    else:
        validation = evaluate(session, "validation").metrics
        record = _record(cell, session, validation, evaluate(session, "test", generate=True), None)
        if lost is not None:
            lost["after"] = lost["before"]
    record["forgetting"] = lost
    if known is not None and lost is not None:
        record["notes"].append(known.note(session))
    record["hashes"]["start"] = state
    record["timing"]["total"] = time.perf_counter() - start
    return record


def _trained(cell: Cell, session: Session, known: Known | None, lost: Lost | None, folder: Path) -> CellRecord:
    from surgery.operation import operate
    from surgery.study.exact import Snapshot
    from surgery.training.fit import evaluate, fit

    assert cell.spec.training is not None
    if cell.phase == "tune":
        with operate(session.model, session.plan, registry=session.registry) as operation:
            result = fit(session, operation, cell.spec.training, seed=cell.seed, evaluate_first=False)
            return _record(cell, session, _validation(session, result), None, result)
    snapshot = Snapshot(session.model)
    with operate(session.model, session.plan, registry=session.registry) as operation:
        result = fit(session, operation, cell.spec.training, seed=cell.seed)
        test = evaluate(session, "test", generate=True)
        record = _record(cell, session, _validation(session, result), test, result)
        if known is not None and lost is not None:
            known.after(lost, session, operation, record["validation"], not record["diverged"])
        if cell.weights and not record["diverged"]:
            record["weights"], found = changed_weights(operation, COUNT)
            keep_directions(found, cell, folder)
        record["checkpoint_bytes"], record["checkpoint"] = _saved(operation, folder / ADAPTERS / cell.folder)
        merge = None if record["diverged"] else snapshot.round_trip(session, operation, cell.probe)
    if merge is not None:
        # Once more when the adapters are gone: undo, too, must leave the very bits.
        merge["differ"] = max(merge["differ"], snapshot.differing())
    record["merge"] = merge
    return record


def _validation(session: Session, result: FitResult) -> Mapping[str, float]:
    """Return the validation metrics after the last step, which training has measured already."""
    last = result.history[-1] if result.history else None
    if last is not None and last.step == result.updates:
        return {session.metric: last.validation_metric, "loss": last.validation_loss}
    from surgery.training.fit import evaluate

    return evaluate(session, "validation").metrics


def versions(registry: Registry) -> dict[str, str]:
    """Return the versions of everything that decides results: distribution -> version."""
    found = {"python": platform.python_version()}
    for name in ("model-surgery", "torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    for plugin in registry.plugins:
        if plugin.version:
            found[plugin.distribution] = plugin.version
    return dict(sorted(found.items()))


_warm: dict[str, Session] = {}
"""The sessions that this process loaded last: cells of one study share model, task and data."""


def session_of(cell: Cell, registry: Registry) -> Session:
    """Return the session of a cell: the one that this process has in hand, if it is of the same model and data."""
    from surgery.training import prepare

    spec = cell.spec
    wanted = "\n".join(repr(part) for part in (spec.model, spec.task, spec.data))
    warm = _warm.get(wanted)
    if warm is not None and warm.registry is registry:
        # Not only the seed: the head is drawn again by every seed's own generators, so this equals a fresh load.
        session = warm.with_spec(spec, cell.seed)
    else:
        session = prepare(spec, registry, seed=cell.seed)
        _require_splits(session)
    while len(_warm) >= _ENOUGH_WARM:
        _warm.pop(next(iter(_warm)))
    _warm[wanted] = session
    return session


def _require_splits(session: Session) -> None:
    # Told before hours of tuning, not after them.
    if not session.examples.get("test"):
        raise DataError(
            "a study needs a test split, which is read once for every final run",
            "data.test",
            "name a split or a file under data.test; validation only chooses learning rates",
        )


def _record(
    cell: Cell, session: Session, validation: Mapping[str, float], test: Evaluation | None, result: FitResult | None
) -> CellRecord:
    plan = session.plan
    return CellRecord(
        key=cell.key,
        arm=cell.arm,
        phase=cell.phase,
        seed=cell.seed,
        learning_rate=cell.rate,
        trains=cell.trains,
        plan=plan.hash if cell.trains else "",
        metric={"name": session.metric, "greater_is_better": session.greater_is_better},
        validation=_metrics(validation),
        test=None if test is None else _metrics(test.metrics),
        test_reads=0 if test is None else 1,
        items=None if test is None else _items(test),
        curve=[] if result is None else _curve(result),
        parameters={
            "adapter": plan.adapter_parameters if cell.trains else 0,
            "head": plan.head_parameters if cell.trains else 0,
            "model": plan.model_parameters,
        },
        checkpoint_bytes=0,
        checkpoint="",
        merge=None,
        forgetting=None,
        memory=None if result is None else _memory(result),
        cost=None if result is None else step_cost(session, result),
        budget=Budget(
            examples=result.examples if result else 0,
            tokens=result.tokens if result else 0,
            updates=result.updates if result else 0,
        ),
        hashes=_hashes(session, result),
        majority=None if test is None else _majority(session, test),
        diverged=result is not None and result.diverged_at is not None,
        notes=list(session.notes),
        versions=versions(session.registry),
        timing=_timing(result),
        machine=_machine(),
        conditions=None if result is None else conditions(session, result),
    )


def _metrics(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in metrics.items()}


def _items(test: Evaluation) -> dict[str, list[float | None]]:
    return {name: [_finite(value) for value in array.tolist()] for name, array in test.items.items()}


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN: what is not finite is told as null."""
    return value if value is not None and math.isfinite(value) else None


def _curve(result: FitResult) -> list[CurvePoint]:
    return [
        CurvePoint(
            step=point.step,
            train_loss=_finite(point.train_loss),
            validation_loss=_finite(point.validation_loss),
            tokens=point.tokens,
            validation_metric=_finite(point.validation_metric),
        )
        for point in result.history
    ]


def _memory(result: FitResult) -> Memory:
    parts = result.memory
    return Memory(
        weights=parts["weights"],
        gradients=parts["gradients"],
        optimizer=parts["optimizer"],
        activations=parts["activations"],
    )


def _timing(result: FitResult | None) -> Timing:
    if result is None or not result.step_times.seconds:
        return Timing(step=None, step_low=None, step_high=None, step_cpu=None, total=0.0)
    times = result.step_times
    timing = Timing(step=times.median, step_low=times.p25, step_high=times.p75, step_cpu=times.cpu_median, total=0.0)
    if "device_peak" in result.memory:
        timing["device_peak"] = result.memory["device_peak"]
    return timing


def _hashes(session: Session, result: FitResult | None) -> dict[str, str]:
    splits = sorted((name, digest) for name, digest in session.hashes.items() if name.startswith("data."))
    data = hashlib.sha256("\n".join(f"{name} {digest}" for name, digest in splits).encode()).hexdigest()
    order = {} if result is None else {"order": result.order_hash}
    return {**session.hashes, "data": data, **order}


def _saved(operation: Operation, folder: Path) -> tuple[int, str]:
    """Write the adapter checkpoint; return its bytes, and the sha256 of its files."""
    # A leftover of a run that was killed before its record was written; the name holds the cell's key.
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    operation.save(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return sum(path.stat().st_size for path in files), digest.hexdigest()


def _majority(session: Session, test: Evaluation) -> Majority | None:
    """Return what always answering the most frequent training class scores; None for tasks without labels."""
    import numpy as np

    classes = session.labels and all(isinstance(row["labels"], int) for row in session.examples["train"])
    if not classes or "label" not in test.items:
        return None
    counts = np.bincount(_labels(session.examples["train"]), minlength=len(session.labels))
    shares = counts / counts.sum()
    best = int(counts.argmax())
    items = {**test.items, "prediction": np.full_like(test.items["label"], best)}
    items["loss"] = -np.log(shares[test.items["label"]])
    validation = -np.log(shares[_labels(session.examples["validation"])])
    return Majority(
        label=best,
        shares=[float(share) for share in shares],
        test=_metrics(session.task.score(items)),
        validation_loss=_finite(float(validation.mean())),
    )


def _labels(examples: Sequence[Mapping[str, Any]]) -> list[int]:
    return [int(example["labels"]) for example in examples]


def _machine() -> dict[str, str | int]:
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count() or 1,
        "device": _device(),
        "python": sys.implementation.name,
    }


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
