"""What is swapped or flipped behind an operation's back, in the model or in an adapter folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from surgery import Rule, Spec, load_adapter, load_registry, operate, plan
from surgery.errors import CheckpointError, DriftError
from surgery.testing import ToyModel, assert_same_state, model_state, toy_registry

LORA = load_registry().adapter("lora")
REGISTRY = toy_registry(LORA)
SPEC = Spec(name="tampered", rules=[Rule(target=r".*\.up", adapter="lora", rank=2)])


def test_a_module_that_was_replaced_is_drift() -> None:
    model = ToyModel()
    op = operate(model, plan(SPEC, model, REGISTRY), registry=REGISTRY)
    host = model.body.layers[0].up
    model.body.layers[0].up = nn.Linear(6, 12)
    for act in (op.merge, op.undo):
        with pytest.raises(DriftError, match="was replaced"):
            act()
    model.body.layers[0].up = host
    op.undo()


def _saved(folder: Path) -> ToyModel:
    model = ToyModel()
    with operate(model, plan(SPEC, model, REGISTRY), registry=REGISTRY) as op:
        op.save(folder)
    return model


def _refused(model: ToyModel, folder: Path) -> str:
    before = model_state(model)
    with pytest.raises(CheckpointError) as caught:
        load_adapter(model, folder, registry=REGISTRY)
    assert_same_state(before, model_state(model), "by a refused adapter")
    return str(caught.value)


def test_a_flipped_bit_in_the_tensors_is_an_error(tmp_path: Path) -> None:
    model = _saved(tmp_path / "a")
    path = tmp_path / "a" / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    assert "not those that adapter.json was written with" in _refused(model, tmp_path / "a")


def test_a_plan_that_is_not_the_adapters_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    model = _saved(tmp_path / "a")
    path = tmp_path / "a" / "adapter.json"
    config = json.loads(path.read_text())
    config["spec"]["rules"][0] |= {"rank": 2**20, "allow_oversized": True}
    path.write_text(json.dumps(config))
    assert "it was made by plan" in _refused(model, tmp_path / "a")


def test_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    model = _saved(tmp_path / "a")
    path = tmp_path / "a" / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"plugin": {}}))
    assert "unknown key 'plugin'" in _refused(model, tmp_path / "a")


def test_a_nan_of_the_base_does_not_keep_full_tuning_from_merging() -> None:
    registry = toy_registry(load_registry().adapter("full"))
    model = ToyModel()
    with torch.no_grad():
        model.body.layers[0].up.weight[0, 0] = float("nan")
    before = model_state(model)
    spec = Spec(name="nan", rules=[Rule(target=r".*\.up", adapter="full")])
    with operate(model, plan(spec, model, registry), registry=registry) as op:
        with torch.no_grad():
            for parameter in op.trainable().values():
                parameter.add_(0.5)
        op.merge()
        assert torch.isfinite(model.body.layers[0].up.weight[0, 1:]).all()
    assert_same_state(before, model_state(model))
