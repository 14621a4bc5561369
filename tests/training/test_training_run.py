"""Runs: whole folders, refused folders, and runs that were stopped in every way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import sentences, write_lines

from surgery.errors import CheckpointError, SurgeryError, TrainingError
from surgery.operation import Operation, load_adapter
from surgery.registry import Registry
from surgery.spec import Spec
from surgery.training import train
from surgery.training.fit import last_checkpoint
from surgery.training.folders import alone_in
from surgery.training.models import load_model

SpecOf = Callable[..., Spec]
TRAINING = {"steps": 8, "evaluate_every": 2, "save_every": 2, "gradient_accumulation": 2}
LORA = {"role": r"attention\.(query|value)", "adapter": "lora", "rank": 2, "dropout": 0.2}


@pytest.fixture
def spec(spec_of: SpecOf) -> Spec:
    return spec_of(LORA, training=TRAINING)


def adapter_bits(folder: Path) -> dict[str, bytes]:
    files = (folder / "adapter").rglob("*.safetensors")
    found = {path.name: path.read_bytes() for path in files}
    assert found
    return found


def result_of(folder: Path) -> dict[str, Any]:
    """Return what a run must repeat: everything but the clock."""
    result = json.loads((folder / "result.json").read_text())
    for key in ("seconds", "step_times"):
        del result["fit"][key]
    result["curve"] = (folder / "metrics.jsonl").read_text()
    return result


def refused(*arguments: Any, **options: Any) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        train(*arguments, **options)
    return caught.value


def test_a_run_folder_is_whole(spec: Spec, registry: Registry, rows: Any, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    told: list[str] = []
    result = train(spec, out, registry=registry, data=rows, progress=lambda done, total, what: told.append(what))
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter", "metrics.jsonl", "plan.json", "result.json", "run.json", "spec.yaml",
    ]  # fmt: skip
    assert not result.was_done
    assert set(result.metrics) == {"validation", "test"}
    assert set(result.metrics["test"]) == {"loss", "accuracy", "macro_f1", "f1", "matthews"}
    assert {"small", "evaluating test"} <= set(told)
    record = json.loads((out / "run.json").read_text())
    assert set(record["identity"]) >= {"spec", "seed", "base", "head", "tokenizer", "data.train", "data.validation"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["data"]["train"] == "60 rows given in Python"
    assert record["labels"] == ["bad", "good"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4, 6, 8]
    from surgery import load_spec

    assert load_spec(out / "spec.yaml", registry) == spec
    for path in (out / "run.json", out / "plan.json", out / "result.json"):
        text = path.read_text()
        assert text == json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, indent=2) + "\n"


def test_the_saved_adapter_gives_the_same_metrics(
    spec: Spec, registry: Registry, rows: Any, tmp_path: Path, bert: Path
) -> None:
    from surgery.training import prepare
    from surgery.training.fit import evaluate

    out = tmp_path / "a"
    result = train(spec, out, registry=registry, data=rows)
    session = prepare(spec, registry, data=rows)
    with load_adapter(session.model, out / "adapter", registry=registry):
        assert evaluate(session, "test").metrics == result.metrics["test"]


def test_factors_of_ia3_train_and_do_not_decay(
    spec_of: SpecOf, registry: Registry, rows: Any, tmp_path: Path, bert: Path
) -> None:
    from surgery.training import prepare
    from surgery.training.fit import evaluate
    from surgery.training.groups import parameter_groups

    rule = {"role": r"attention\.(key|value)|mlp\.down", "adapter": "ia3"}
    spec = spec_of(rule, training={**TRAINING, "weight_decay": 0.5, "learning_rate": 0.1})
    result = train(spec, tmp_path / "a", registry=registry, data=rows)
    session = prepare(spec, registry, data=rows)
    with load_adapter(session.model, tmp_path / "a" / "adapter", registry=registry) as op:
        assert evaluate(session, "test").metrics == result.metrics["test"]
        groups = parameter_groups(op.trainable(), op.trainable_sites(), spec.training)
        moved = {key: tensor for key, tensor in op.trainable().items() if key.endswith(".scale")}
        assert sum(tensor.numel() for tensor in moved.values()) == 2 * (16 + 16 + 32)
        assert all(bool((tensor != 1).all()) for tensor in moved.values())
        decaying = {id(p) for group in groups if group.weight_decay for p in group.parameters}
        assert not decaying & {id(tensor) for tensor in moved.values()}


def test_the_same_run_twice(spec: Spec, registry: Registry, rows: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(spec, tmp_path / name, registry=registry, data=rows)
    assert adapter_bits(tmp_path / "a") == adapter_bits(tmp_path / "b")
    assert result_of(tmp_path / "a") == result_of(tmp_path / "b")
    for name in ("spec.yaml", "plan.json", "run.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_folders_in_use(spec: Spec, registry: Registry, rows: Any, tmp_path: Path, spec_of: SpecOf) -> None:
    out = tmp_path / "a"
    train(spec, out, registry=registry, data=rows)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    error = refused(spec, out, registry=registry, data=rows)
    assert (error.what, error.hint) == ("the folder holds a finished run", "name a new folder")
    again = train(spec, out, registry=registry, data=rows, resume=True)
    assert again.was_done
    assert again.notes == ("the run is already finished: nothing was done",)
    assert again.metrics == json.loads((out / "result.json").read_text())["metrics"]
    error = refused(spec_of(training=TRAINING), out, registry=registry, data=rows, resume=True)
    assert (error.what, error.hint) == (
        "the folder holds a run of another spec",
        "they differ in rules; name a new folder",
    )
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_foreign_folders_and_files(spec: Spec, registry: Registry, rows: Any, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    error = refused(spec, tmp_path, registry=registry, data=rows)
    assert (error.what, error.hint) == ("the folder is not empty", "name a new folder")
    error = refused(spec, tmp_path, registry=registry, data=rows, resume=True)
    assert error.what == "the folder holds something else than a run"
    error = refused(spec, tmp_path / "letters.txt", registry=registry, data=rows)
    assert error.what == "the output is a file, not a folder"
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_notes_are_told_before_training_and_after(
    spec_of: SpecOf, registry: Registry, rows: Any, tmp_path: Path
) -> None:
    told: list[str] = []

    def progress(done: int, total: int, what: str) -> None:
        told.append("step")

    spec = spec_of(LORA, training={"steps": 4, "learning_rate": 50.0})
    result = train(
        spec, tmp_path / "a", registry=registry, data={"train": rows["train"]}, resume=True, progress=progress,
        tell=told.append,
    )  # fmt: skip
    notes = [text for text in told if text != "step"]
    assert tuple(notes) == result.notes
    assert notes[0] == "there is no run to go on with: it begins anew"
    assert notes[1].startswith("no validation split: ")
    assert notes[2].startswith("the model is worse than before training (validation loss ")
    assert (told.index(notes[1]), told[-1]) == (1, notes[2])


def test_a_spec_without_training(spec_of: SpecOf, registry: Registry, rows: Any, tmp_path: Path) -> None:
    error = refused(spec_of(LORA).model_copy(update={"training": None}), tmp_path / "a", registry=registry, data=rows)
    assert error.what == "the spec does not say how to train"


class Stop:
    """A progress that interrupts the process as Ctrl-C does, once, at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, done: int, total: int, description: str) -> None:
        if done == self.step and description == "small":
            self.step = -1
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell the progress about every step."""
    monkeypatch.setattr("surgery.training.trainer._PROGRESS_SECONDS", 0.0)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("step", [1, 4, 5, 8])
def test_ctrl_c_and_resume_equal_an_uninterrupted_run(
    spec: Spec, registry: Registry, rows: Any, tmp_path: Path, step: int
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(spec, whole, registry=registry, data=rows)
    error = refused(spec, stopped, registry=registry, data=rows, progress=Stop(step))
    assert error.what == "stopped by Ctrl-C"
    assert error.hint == f"go on with:  surgery train {stopped}/spec.yaml --out {stopped} --resume"
    assert not (stopped / "result.json").exists()
    checkpoint = last_checkpoint(stopped / "checkpoints")
    assert checkpoint is not None
    # The interrupted step is finished before the process stops; what was told was the step before it at the latest.
    assert step <= int(checkpoint.name.rpartition("-")[2]) <= step + 1
    train(spec, stopped, registry=registry, data=rows, resume=True)
    assert adapter_bits(stopped) == adapter_bits(whole)
    assert result_of(stopped) == result_of(whole)
    assert not (stopped / "checkpoints").exists()


@pytest.mark.usefixtures("eager")
def test_ctrl_c_before_training(spec: Spec, registry: Registry, rows: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("surgery.training.run.prepare", interrupted)
    error = refused(spec, tmp_path / "a", registry=registry, data=rows)
    assert error.hint == "nothing had begun: run the same command again"
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("eager")
def test_resuming_with_other_data_is_refused(spec: Spec, registry: Registry, rows: Any, tmp_path: Path) -> None:
    refused(spec, tmp_path / "a", registry=registry, data=rows, progress=Stop(3))
    error = refused(spec, tmp_path / "a", registry=registry, data={**rows, "train": sentences(50)}, resume=True)
    assert error.what == "the run began with other inputs: data.train differ"


def test_half_a_checkpoint_is_not_used(
    spec: Spec, registry: Registry, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full while the third checkpoint is written: the second one is what resuming finds."""
    whole, out = tmp_path / "whole", tmp_path / "a"
    train(spec, whole, registry=registry, data=rows)
    save, calls = Operation.save, []

    def full(self: Operation, folder: Any, name: str | None = None) -> Path:
        calls.append(folder)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, folder, name)

    monkeypatch.setattr(Operation, "save", full)
    error = refused(spec, out, registry=registry, data=rows)
    assert error.what == "the disk is full; nothing half-written was kept"
    assert error.hint == "free some space, then continue with --resume"
    checkpoint = last_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint-4"]
    train(spec, out, registry=registry, data=rows, resume=True)
    assert adapter_bits(out) == adapter_bits(whole)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("basic_ios::clear: iostream error"),
        CheckpointError("cannot write the adapter: No space left on device", "adapter"),
    ],
    ids=["oserror", "torch", "torch-end", "torch-stream", "own"],
)
def test_a_full_disk_leaves_no_half_written_adapter(
    spec_of: SpecOf, registry: Registry, rows: Any, tmp_path: Path, monkeypatch: Any, failure: Exception
) -> None:
    save = Operation.save

    def full(self: Operation, folder: Any, name: str | None = None) -> Path:
        if Path(folder).name == "adapter.writing":
            Path(folder).mkdir()
            (Path(folder) / "half").write_text("x")
            raise failure
        return save(self, folder, name)

    monkeypatch.setattr(Operation, "save", full)
    out = tmp_path / "a"
    with pytest.raises(SurgeryError, match="disk is full|No space left"):
        train(spec_of(LORA), out, registry=registry, data=rows)
    assert not [path for path in out.iterdir() if path.name.startswith("adapter")]
    assert not (out / "result.json").exists()


def test_divergence_is_an_error_of_the_run(spec_of: SpecOf, registry: Registry, rows: Any, tmp_path: Path) -> None:
    rule = {"role": ".*", "adapter": "full", "exclude": {"target": "classifier"}}
    spec = spec_of(rule, training={"steps": 60, "learning_rate": 1e30, "max_grad_norm": None})
    error = refused(spec, tmp_path / "a", registry=registry, data=rows)
    assert error.what.startswith("training diverged: the loss of step ")
    assert not (tmp_path / "a" / "result.json").exists()


KILLED = """
import sys, torch
torch.set_num_threads(1)
from surgery.registry import load_registry
from surgery.spec import Spec
from surgery.training import train
import surgery_bert, surgery_full, surgery_lora, surgery_text_classification, surgery_transformers
plugins = [surgery_bert, surgery_full, surgery_lora, surgery_text_classification, surgery_transformers]
registry = load_registry(extra=plugins, entry_points=False)
spec = Spec.model_validate_json(open(sys.argv[1]).read())
train(spec, sys.argv[2], registry=registry, data=sys.argv[3], resume=len(sys.argv) > 4)
"""


def test_kill_9_and_resume_equal_an_uninterrupted_run(
    spec_of: SpecOf, registry: Registry, rows: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, found in rows.items():
        write_lines(data / f"{split}.jsonl", found)
    spec = spec_of(LORA, training={"steps": 400, "evaluate_every": 100, "save_every": 5})
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "spec.json"), str(out), str(data)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while last_checkpoint(out / "checkpoints") is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "result.json").exists()
    result = train(spec, out, registry=registry, data=data, resume=True)
    whole = train(spec, tmp_path / "whole", registry=registry, data=data)
    assert adapter_bits(out) == adapter_bits(tmp_path / "whole")
    assert result_of(out) == result_of(tmp_path / "whole")
    assert result.metrics == whole.metrics


def test_two_processes_make_one_run(spec_of: SpecOf, registry: Registry, rows: Any, tmp_path: Path) -> None:
    """torchrun with two processes of half the batch sees the same examples as one process, and writes once."""
    pytest.importorskip("torch.distributed")
    if not torch.distributed.is_gloo_available():
        pytest.skip("no gloo")
    data = tmp_path / "data"
    data.mkdir()
    for split, found in rows.items():
        write_lines(data / f"{split}.jsonl", found)
    (tmp_path / "script.py").write_text(KILLED)
    spec = spec_of({**LORA, "dropout": 0.0}, training={"steps": 4, "batch_size": 2, "save_every": 2})
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    out = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "script.py"), str(tmp_path / "spec.json"), str(out), str(data)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    two = json.loads((out / "result.json").read_text())["fit"]
    one_spec = spec_of({**LORA, "dropout": 0.0}, training={"steps": 4, "batch_size": 4, "save_every": 2})
    train(one_spec, tmp_path / "one", registry=registry, data=data)
    one = json.loads((tmp_path / "one" / "result.json").read_text())["fit"]
    assert two["order_hash"] == one["order_hash"]
    assert (two["examples"], two["tokens"]) == (one["examples"], one["tokens"])
    assert json.loads((out / "run.json").read_text())["machine"]["processes"] == 2


def test_loading_needs_the_same_seed(bert: Path, registry: Registry) -> None:
    heads = [
        load_model(str(bert), "AutoModelForSequenceClassification", registry, seed=seed, labels=("a", "b")).model
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0].classifier.weight, heads[1].classifier.weight)
    assert not torch.equal(heads[0].classifier.weight, heads[2].classifier.weight)


def test_a_folder_is_one_runs_at_a_time(spec: Spec, registry: Registry, rows: Any, tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    with alone_in(out):
        error = refused(spec, out, registry=registry, data=rows)
        assert (error.what, error.where) == ("another process is at work in this folder", str(out))
        assert out.is_dir()
    assert not (tmp_path / "new").exists()  # nothing was written, so nothing is left


@pytest.mark.parametrize("record", ['{"identity": {}}', '{"identity": {"spec": "[]"}}', '{"x": 1}', "{}"])
def test_an_edited_record_is_told(record: str, spec: Spec, registry: Registry, rows: Any, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(record)
    error = refused(spec, tmp_path, registry=registry, data=rows, resume=True)
    assert (error.what, error.where) == ("the file does not describe a run", str(tmp_path / "run.json"))


@pytest.mark.parametrize("name", ["a" * 300, "loop", "loop/run"])
def test_an_impossible_folder_is_told(name: str, spec: Spec, registry: Registry, rows: Any, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "the folder cannot be used" in refused(spec, tmp_path / name, registry=registry, data=rows).what


@pytest.mark.parametrize("name", ["", "a" * 5000, "\x1b[31m"])
def test_a_model_that_cannot_be_one_is_told(
    name: str, spec: Spec, registry: Registry, rows: Any, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="cannot name a model"):
        train(spec, tmp_path / "run", registry=registry, data=rows, model=name)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "recorder.json", "files.json"])
@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "empty"])
def test_a_damaged_checkpoint_is_told(
    name: str, is_gone: bool, spec: Spec, registry: Registry, rows: Any, tmp_path: Path
) -> None:
    """The Trainer goes on without a word where the optimizer's moments are missing, to another result."""
    refused(spec, tmp_path, registry=registry, data=rows, progress=Stop(3))
    checkpoint = last_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    (checkpoint / name).unlink() if is_gone else (checkpoint / name).write_bytes(b"")
    error = refused(spec, tmp_path, registry=registry, data=rows, resume=True)
    assert error.what.startswith("the checkpoint is damaged: ")
    assert name in error.what or name == "files.json"
    shutil.rmtree(checkpoint)  # what the hint says
    assert not train(spec, tmp_path, registry=registry, data=rows, resume=True).was_done


@pytest.mark.usefixtures("eager")
def test_what_a_killed_save_left_is_taken_away(spec: Spec, registry: Registry, rows: Any, tmp_path: Path) -> None:
    refused(spec, tmp_path, registry=registry, data=rows, progress=Stop(3))
    (tmp_path / ".adapter.writing.abc").mkdir()
    train(spec, tmp_path, registry=registry, data=rows, resume=True)
    assert not list(tmp_path.glob(".*"))
