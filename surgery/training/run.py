"""`surgery train`: one spec into one folder that holds everything needed to repeat it."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surgery.errors import CheckpointError, TrainingError
from surgery.operation import Operation, load_adapter, operate
from surgery.registry import Registry, load_registry, load_spec
from surgery.spec import ModelRef, Spec, TrainingSpec
from surgery.training.data import DataOverride, describe
from surgery.training.fit import evaluate, fit, share
from surgery.training.folders import alone_in, canonical_json, disk_errors, write_json, write_text
from surgery.training.record import differences, identity, run_record
from surgery.training.result import FitResult, Progress
from surgery.training.session import Session, prepare
from surgery.training.world import is_main, processes

__all__ = ["RunResult", "train"]

_CHECKPOINTS = "checkpoints"
_RESULT = "result.json"
_ADAPTER = "adapter"
_GENERATED = "generated.jsonl"


@dataclass(frozen=True)
class RunResult:
    """What `train` did.

    Attributes:
        folder: the run folder: spec.yaml, plan.json, run.json, metrics.jsonl, adapter/, result.json, and
            generated.jsonl where the task has the model write.
        metrics: split -> metric name -> value, of the trained model.
        was_done: the folder already held this finished run; nothing was trained.
        notes: what was decided on the way, for the user to read.
        fit: the training itself; None when nothing was trained.
    """

    folder: Path
    metrics: Mapping[str, Mapping[str, float | None]]
    was_done: bool
    notes: tuple[str, ...] = ()
    fit: FitResult | None = None


def train(  # noqa: PLR0913 - everything after the star is optional or named
    spec: Spec | str | Path,
    out: str | Path,
    *,
    registry: Registry | None = None,
    data: DataOverride | None = None,
    model: ModelRef | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
    keep: str = "ram",
) -> RunResult:
    """Train `spec` and write the run folder `out`. `result.json` comes last: where it is, the run is complete.

    Args:
        spec: the spec, or its file; it must have a task and a training section.
        out: the run folder; new or empty, unless `resume`.
        registry: the installed plugins; None loads them.
        data, model: in place of the spec's.
        resume: go on with what `out` holds; a finished run of the same inputs is checked and left alone.
        progress: told how far it is.
        tell: told the notes of the result as soon as they are known, most of them before training.
        keep: how the operation keeps the originals while merged, see `surgery.operate`.

    Raises:
        TrainingError: a folder in use, a run of another spec, a full disk, Ctrl-C (the folder can be resumed).
    """
    folder = Path(out)
    registry = registry or load_registry()
    if not isinstance(spec, Spec):
        spec = load_spec(spec, registry)
    if spec.training is None:
        raise TrainingError(
            "the spec does not say how to train", f"spec {spec.name}", "add training: {steps: ..., ...}"
        )
    notes = _Notes(tell)
    with disk_errors(folder), alone_in(folder) if is_main() else contextlib.nullcontext():
        done = _open(folder, spec, resume)
        if done is None:
            notes.add(*_nothing_to_resume(folder, resume))
        try:
            session = prepare(spec, registry, data=data, model=model)
            _begin(folder, session, data, model)
            if done is not None:
                _check_adapter(folder / _ADAPTER, session)
                notes.add(*done.notes)
                return done
            notes.add(*session.notes)
            with operate(session.model, session.plan, keep=keep, registry=registry) as operation:
                result = _run(folder, session, operation, spec.training, progress)
            notes.add(*_afterthoughts(result), *_not_numbers(result, session))
            return replace(result, notes=tuple(notes.all))
        except KeyboardInterrupt:
            raise TrainingError("stopped by Ctrl-C", str(folder), _resume_hint(folder, data, model)) from None


class _Notes:
    """What was decided on the way, passed on as soon as it is known."""

    def __init__(self, tell: Callable[[str], None] | None) -> None:
        self.all: list[str] = []
        self._tell = tell if is_main() else None

    def add(self, *texts: str) -> None:
        self.all += texts
        if self._tell is not None:
            for text in texts:
                self._tell(text)


def _run(
    folder: Path, session: Session, operation: Operation, training: TrainingSpec, progress: Progress | None
) -> RunResult:
    checkpoints = folder / _CHECKPOINTS
    progress = progress if is_main() else None
    shards = share(session, operation)
    fitted = fit(
        session, operation, training, out=checkpoints, seed=session.seed, progress=progress, resume=True, shards=shards
    )
    if fitted.diverged_at is not None:
        what = f"training diverged: the loss of step {fitted.diverged_at} is not finite"
        raise TrainingError(what, str(folder), "lower training.learning_rate, or raise training.warmup")
    metrics: dict[str, dict[str, float | None]] = {}
    texts: list[dict[str, str]] = []
    for split in ("validation", "test"):
        if split in session.examples:
            found = evaluate(session, split, shards and shards.model, progress=progress, generate=True)
            metrics[split] = {name: value if math.isfinite(value) else None for name, value in found.metrics.items()}
            texts += [{"split": split, "source": source, "text": text} for source, text in found.texts]
    if is_main():
        if texts:
            write_text(folder / _GENERATED, "".join(f"{canonical_json(line)}\n" for line in texts))
        _finish(folder, session, operation, fitted, metrics)
    return RunResult(folder, metrics, was_done=False, fit=fitted)


def _nothing_to_resume(folder: Path, resume: bool) -> Iterator[str]:
    if resume and not (folder / "run.json").is_file():
        yield "there is no run to go on with: it begins anew"


def _afterthoughts(result: RunResult) -> Iterator[str]:
    """Yield what the user should know about a run that went through and yet did no good."""
    first = result.fit.history[0] if result.fit and result.fit.history else None
    after = result.metrics.get("validation", {}).get("loss")
    if first is not None and first.step == 0 and after is not None and after > first.validation_loss:
        change = f"validation loss {after:.4f}, {first.validation_loss:.4f} before"
        yield f"the model is worse than before training ({change}): lower training.learning_rate"


def _not_numbers(result: RunResult, session: Session) -> Iterator[str]:
    """Yield which metrics have no value, and whose they are: in files they are null, which says nothing of why."""
    for split, values in result.metrics.items():
        if names := [name for name, value in values.items() if value is None]:
            of = session.registry.origin("task", session.task.name)
            told = f"warning: {split} {', '.join(names)} {'is' if len(names) == 1 else 'are'} not a number"
            yield f"{told}, says score of {of}: NaN or infinite"


def _open(folder: Path, spec: Spec, resume: bool) -> RunResult | None:
    """Refuse a folder that is in use; return the result that it already holds, when that is what was asked for."""
    if not is_main() and not (resume and (folder / _RESULT).is_file()):
        return None  # the main process says what is wrong; all of them leave a finished run alone
    used = folder.is_dir() and any(folder.iterdir())
    if used and not resume:
        finished = (folder / _RESULT).is_file()
        is_run = not finished and ((folder / "run.json").is_file() or _is_leftover(folder))
        hint = "go on with it by --resume, or name a new folder" if is_run else "name a new folder"
        raise TrainingError(f"the folder {'holds a finished run' if finished else 'is not empty'}", str(folder), hint)
    if used and not (folder / "run.json").is_file() and not _is_leftover(folder):
        raise TrainingError("the folder holds something else than a run", str(folder), "name a new folder")
    before = _record(folder)
    if before and before["identity"]["spec"] != spec.canonical_json():
        raise TrainingError("the folder holds a run of another spec", str(folder), _spec_hint(before, spec))
    if not (folder / _RESULT).is_file():
        return None
    result = _read(folder / _RESULT)
    metrics = result.get("metrics")
    if not isinstance(metrics, dict) or not all(_is_metrics(values) for values in metrics.values()):
        hint = "delete it, or name a new folder"
        raise TrainingError("the file holds no result of a run", str(folder / _RESULT), hint)
    return RunResult(folder, metrics, was_done=True, notes=("the run is already finished: nothing was done",))


def _begin(folder: Path, session: Session, data: DataOverride | None, model: ModelRef | str | None) -> None:
    """Write what the run starts from, or check that it is what the run started from."""
    if not is_main():
        return
    before = _record(folder)
    if before:
        for leftover in folder.glob(".adapter.writing.*"):  # of a run that was killed while it saved
            shutil.rmtree(leftover, ignore_errors=True)
        changed = differences(before["identity"], identity(session))
        if changed:
            what = f"the run began with other inputs: {', '.join(changed)} differ"
            raise TrainingError(what, str(folder), "resume with the same model and data, or name a new folder")
        _refuse_other_world(before, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "spec.yaml", session.spec.to_yaml())
    write_json(folder / "plan.json", session.plan.to_dict())
    write_json(folder / "run.json", run_record(session, describe(data), _model_text(model)))


def _refuse_other_world(before: Mapping[str, Any], folder: Path) -> None:
    """Each process has a batch of its own: as many as the run began with see the same examples at each step."""
    machine = before.get("machine")
    then = machine.get("processes") if isinstance(machine, dict) else None
    if isinstance(then, int) and then != processes():
        what = f"the run began with {_counted(then)}, and this is {_counted(processes())}"
        hint = f"start it with accelerate launch --num_processes {then}" if then > 1 else "start it without a launcher"
        raise TrainingError(what, str(folder), hint)


def _counted(processes: int) -> str:
    return "one process" if processes == 1 else f"{processes} processes"


def _finish(
    folder: Path, session: Session, operation: Operation, fitted: FitResult, metrics: Mapping[str, Any]
) -> None:
    plain = fitted.to_dict()
    lines = [canonical_json(point) for point in plain.pop("history")]
    write_text(folder / "metrics.jsonl", "".join(f"{line}\n" for line in lines))
    staged, adapter = folder / f"{_ADAPTER}.writing", folder / _ADAPTER
    shutil.rmtree(staged, ignore_errors=True)
    try:
        operation.save(staged)
        shutil.rmtree(adapter, ignore_errors=True)
        staged.replace(adapter)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    write_json(folder / _RESULT, {"name": session.spec.name, "metrics": metrics, "fit": plain})
    shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)


def _is_metrics(values: Any) -> bool:
    """Whether `values` are a split's metrics: finite numbers, or null where one was not finite."""
    return isinstance(values, dict) and all(
        value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max) for value in values.values()
    )


def _check_adapter(folder: Path, session: Session) -> None:
    """Load what a finished run saved, and take it off again: a run is not done whose adapter is gone or damaged."""
    try:
        with load_adapter(session.model, folder, registry=session.registry):
            pass
    except CheckpointError as error:
        what = f"the run is finished, but its adapter cannot be used: {error.what}"
        raise TrainingError(what, error.where, "restore the folder, or train anew into a new one") from error


def _is_leftover(folder: Path) -> bool:
    """Whether all there is are the files that a run writes before run.json: it was killed while it began."""
    early = {"spec.yaml", "plan.json"}
    return all(path.name.removesuffix(".writing") in {*early, "run.json"} for path in folder.iterdir())


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"the run's record cannot be read: {error}", str(path), "name a new folder") from None
    return content if isinstance(content, dict) else {}


def _record(folder: Path) -> dict[str, Any]:
    """Return what the run in `folder` wrote down when it began; empty where there is none."""
    path = folder / "run.json"
    record = _read(path)
    identity = record.get("identity")
    if path.is_file() and not (isinstance(identity, dict) and _is_object(identity.get("spec"))):
        raise TrainingError("the file does not describe a run", str(path), "name a new folder")
    return record


def _is_object(text: Any) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _spec_hint(before: Mapping[str, Any], spec: Spec) -> str:
    old, new = json.loads(before["identity"]["spec"]), json.loads(spec.canonical_json())
    return f"they differ in {', '.join(differences(old, new))}; name a new folder"


def _resume_hint(folder: Path, data: DataOverride | None, model: ModelRef | str | None) -> str:
    if not (folder / "run.json").is_file():
        return "nothing had begun: run the same command again"
    words = ["surgery", "train", str(folder / "spec.yaml"), "--out", str(folder), "--resume"]
    if isinstance(data, Mapping) and all(isinstance(value, str | Path) for value in data.values()):
        words += ["--data", ",".join(f"{split}={path}" for split, path in data.items())]
    elif isinstance(data, str | Path):
        words += ["--data", str(data)]
    if model is not None:
        words += ["--model", str(_model_text(model))]
    return "go on with:  " + shlex.join(words)


def _model_text(model: ModelRef | str | None) -> str | None:
    return model.ref if isinstance(model, ModelRef) else model
