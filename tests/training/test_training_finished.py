"""Resuming a run that is finished: it is left alone where it is whole and of the same inputs, and told where not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import sentences

from surgery.errors import TrainingError
from surgery.registry import Registry
from surgery.spec import Spec
from surgery.training import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Filled by the first test that needs it: the fixtures of a run are made for each test."""
    return [tmp_path_factory.mktemp("finished") / "run"]


@pytest.fixture
def spec(spec_of: Callable[..., Spec]) -> Spec:
    return spec_of(training={"steps": 2})


@pytest.fixture
def run(finished: list[Path], spec: Spec, registry: Registry, rows: Any, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    if not finished[0].exists():
        train(spec, finished[0], registry=registry, data=rows)
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def resumed(spec: Spec, run: Path, registry: Registry, **inputs: Any) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        train(spec, run, registry=registry, resume=True, **inputs)
    return caught.value


def test_other_data_or_another_model(
    spec: Spec, run: Path, registry: Registry, rows: Any, tmp_path: Path, bert: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    assert train(spec, run, registry=registry, data=rows, resume=True).was_done
    error = resumed(spec, run, registry, data={**rows, "train": sentences(50)})
    assert error.what == "the run began with other inputs: data.train differ"
    other = Path(shutil.copytree(bert, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"] += torch.ones(())
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    error = resumed(spec, run, registry, data=rows, model=str(other))
    assert error.what == "the run began with other inputs: base differ"


@pytest.mark.parametrize("damage", ["gone", "no tensors", "cut", "changed"])
def test_an_adapter_that_is_not_whole(spec: Spec, run: Path, registry: Registry, rows: Any, damage: str) -> None:
    tensors = run / "adapter" / "adapter.safetensors"
    if damage == "gone":
        shutil.rmtree(run / "adapter")
    elif damage == "no tensors":
        tensors.unlink()
    else:
        content = tensors.read_bytes()
        tensors.write_bytes(content[:-8] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    error = resumed(spec, run, registry, data=rows)
    assert error.what.startswith("the run is finished, but its adapter cannot be used: ")
    assert str(run / "adapter") in error.where


@pytest.mark.parametrize("value", ['"NaNx"', "NaN", "true", "[]", "1e999", "1" + "0" * 400])
def test_a_result_whose_metrics_are_no_numbers(
    spec: Spec, run: Path, registry: Registry, rows: Any, value: str
) -> None:
    (run / "result.json").write_text(f'{{"metrics": {{"test": {{"loss": {value}}}}}}}')
    error = resumed(spec, run, registry, data=rows)
    assert (error.what, error.where) == ("the file holds no result of a run", str(run / "result.json"))


@pytest.mark.parametrize("text", ["{}", "[]", "3"])
def test_a_result_that_holds_nothing(spec: Spec, run: Path, registry: Registry, rows: Any, text: str) -> None:
    (run / "result.json").write_text(text)
    assert resumed(spec, run, registry, data=rows).what == "the file holds no result of a run"


def test_a_metric_that_was_not_finite(spec: Spec, run: Path, registry: Registry, rows: Any) -> None:
    (run / "result.json").write_text(json.dumps({"metrics": {"test": {"loss": None, "accuracy": 1}}}))
    again = train(spec, run, registry=registry, data=rows, resume=True)
    assert again.metrics == {"test": {"loss": None, "accuracy": 1}}
