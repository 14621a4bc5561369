"""Adapter checkpoints: canonical, complete or absent, and believed only when everything about them is right."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from operating import LORA, REGISTRY, logits, move, operated, planned, unchanged
from safetensors.torch import load_file, save_file

from surgery import SurgeryError, load_adapter, operate
from surgery.errors import CheckpointError, StateError
from surgery.testing import ToyModel, assert_same_state, model_state

RULES = (
    {"role": r"attention\..*", **LORA},
    {"role": r"norm\..*", "adapter": "full"},
    {"role": r"mlp\..*", "adapter": "bias-only"},
)
CONFIG, TENSORS = "adapter.json", "adapter.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    folder = tmp_path_factory.mktemp("made") / "adapter"
    model = ToyModel().eval()
    with operated(model, *RULES) as op:
        assert op.save(folder) == folder
        return folder, model(ToyModel.batch())


@pytest.fixture
def copied(made: tuple[Path, torch.Tensor], tmp_path: Path) -> Path:
    shutil.copytree(made[0], tmp_path / "adapter")
    return tmp_path / "adapter"


def load(folder: Path, model: Any = None) -> Any:
    return load_adapter(model or ToyModel().eval(), folder, registry=REGISTRY)


def test_a_saved_adapter_loads_with_the_same_bits_and_logits(made: tuple[Path, torch.Tensor]) -> None:
    folder, expected = made
    with load(folder) as op:
        assert torch.equal(op.model(ToyModel.batch()), expected)
        files = {path.name for path in folder.iterdir()}
        assert files == {CONFIG, TENSORS}
        saved = load_file(folder / TENSORS)
        sites = op.trainable_sites()
        for key, parameter in op.trainable().items():
            assert torch.equal(saved[f"{sites[key].key}/{key.rpartition('.')[2]}"], parameter)
        assert len(saved) == len(sites)


def test_the_record_says_what_it_needs(made: tuple[Path, torch.Tensor]) -> None:
    config = json.loads((made[0] / CONFIG).read_text("utf-8"))
    assert set(config) == {"format", "spec", "plan_hash", "plugins", "architecture", "base", "tensors_sha256"}
    assert config["plugins"]["lora"] == {
        "distribution": "model-surgery",
        "version": REGISTRY.adapters["lora"].provenance.version,
    }
    assert set(config["plugins"]) == {"lora", "full", "bias-only"}
    names = [name for name, _ in ToyModel().named_parameters()]
    assert sorted(config["base"]) == sorted(names)
    for name, entry in config["base"].items():
        is_replaced = ".norm." in name or name.endswith(("up.bias",))
        assert (entry["sha256"] is None) == is_replaced, name
    text = (made[0] / CONFIG).read_text("utf-8")
    assert text == json.dumps(config, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


FRESH = """
import sys
import torch
from surgery import Rule, Spec, load_adapter, operate, plan
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Embedding(9, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 8))
rules = [Rule(target="0|2", adapter="lora", rank=2), Rule(target="1", adapter="full"), Rule(target=".*", adapter="bias-only")]
with operate(model, plan(Spec(name="fresh", seed=3, rules=rules), model)) as op:
    with torch.no_grad():
        for _, parameter in sorted(op.trainable().items()):
            parameter.add_(0.5)
    op.save(sys.argv[1])
    torch.save(model(torch.arange(9)), sys.argv[1] + ".pt")
for other in sys.argv[2:]:
    with load_adapter(model, other):
        assert torch.equal(model(torch.arange(9)), torch.load(other + ".pt"))
"""


def _fresh(seed: int, *folders: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", FRESH, *map(str, folders)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"})


def test_ten_hash_seeds_write_the_same_bytes_and_fresh_processes_compute_the_same(tmp_path: Path) -> None:
    """One process for each seed, two at a time; from the third on each also loads what an earlier one has written."""
    for seed in range(0, 10, 2):
        earlier = [tmp_path / str(seed - 2)] if seed else []
        pair = [_fresh(index, tmp_path / str(index), *earlier) for index in (seed, seed + 1)]
        assert [process.wait() for process in pair] == [0, 0]
    for name in (CONFIG, TENSORS):
        assert len({(tmp_path / str(seed) / name).read_bytes() for seed in range(10)}) == 1


# Writing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "folder_mode", "file_mode"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600), (0o002, 0o775, 0o664)]
)
def test_modes_follow_the_umask(mask: int, folder_mode: int, file_mode: int, tmp_path: Path) -> None:
    old = os.umask(mask)
    try:
        with operated(ToyModel(), *RULES) as op:
            folder = op.save(tmp_path / "new" / "a")
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == folder_mode
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {file_mode}


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    with operated(ToyModel(), *RULES) as op:
        for name in ("full", "file"):
            with pytest.raises(CheckpointError, match="exists and is not empty"):
                op.save(tmp_path / name)
        op.save(tmp_path / "empty")
        with pytest.raises(CheckpointError, match="exists and is not empty"):
            op.save(tmp_path / "empty")
        with pytest.raises(CheckpointError, match="cannot write here"):
            op.save(tmp_path / "file" / "below")
    assert (tmp_path / "full" / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]


def test_an_adapter_is_replaced_where_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"
    with operated(ToyModel(), *RULES) as op:
        op.save(folder)
        before = (folder / TENSORS).read_bytes()
        with pytest.raises(CheckpointError) as caught:
            op.save(folder)
        assert caught.value.hint == "choose another, or say overwrite=True"
        move(op, 5)
        rename = Path.rename
        calls: list[Path] = []

        def failing(self: Path, target: Any) -> Path:
            calls.append(self)
            return _full() if len(calls) == 2 else rename(self, target)

        monkeypatch.setattr(Path, "rename", failing)
        with pytest.raises(CheckpointError, match="No space left"):
            op.save(folder, overwrite=True)
        monkeypatch.undo()
        assert (folder / TENSORS).read_bytes() == before
        op.save(folder, overwrite=True)
        assert (folder / TENSORS).read_bytes() != before
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        (folder / "notes.txt").write_text("mine")
        with pytest.raises(CheckpointError, match="something else than an adapter"):
            op.save(folder, overwrite=True)
        assert (folder / "notes.txt").read_text() == "mine"


def _full(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", range(1, 5))
def test_a_full_disk_leaves_nothing(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th fsync fails: of either file, of the new folder, of its parent."""
    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == call:
            _full()
        real(handle)

    model = ToyModel()
    with operated(model, *RULES) as op:
        monkeypatch.setattr(os, "fsync", fsync)
        with unchanged(model), pytest.raises(CheckpointError, match="No space left on device"):
            op.save(tmp_path / "a")
        monkeypatch.undo()
        assert list(tmp_path.iterdir()) == []
        op.save(tmp_path / "a")


@pytest.mark.parametrize("name", ["mkdtemp", "rename", "chmod"])
def test_a_disk_that_fails_at_another_step_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile if name == "mkdtemp" else Path, name, _full)
    with operated(ToyModel(), *RULES) as op:
        with pytest.raises(CheckpointError, match="No space left"):
            op.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_an_interrupt_while_writing_leaves_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with operated(ToyModel(), *RULES) as op:
        if name == "fsync":
            monkeypatch.setattr(os, "fsync", interrupt)
        else:
            monkeypatch.setattr(Path, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            op.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# Tampering ----------------------------------------------------------------------------------------------------------


def _tensors(change: Any) -> Any:
    def act(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        change(tensors)
        save_file(tensors, folder / TENSORS)

    return act


def _config(change: Any) -> Any:
    def act(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        change(config)
        (folder / CONFIG).write_text(json.dumps(config), "utf-8")

    return act


def _text(text: str) -> Any:
    return lambda folder: (folder / CONFIG).write_text(text, "utf-8")


def _grow(name: str) -> Any:
    def act(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate(2**28)

    return act


def _shorten(folder: Path) -> None:
    path = folder / TENSORS
    path.write_bytes(path.read_bytes()[:-5])


A = "body.layers.0.fused.weight:attention.query/A"
NORM = "body.layers.0.norm.weight"
FUSED = "body.layers.0.fused.weight"

TAMPERED: dict[str, tuple[Any, str]] = {
    "missing tensor": (_tensors(lambda t: t.pop(A)), f"the tensor '{A}' is missing"),
    "extra tensor": (_tensors(lambda t: t.update(more=torch.ones(1))), "the tensor 'more' is extra"),
    "wrong dtype": (_tensors(lambda t: t.update({A: t[A].half()})), "is float16 [2, 6], not torch.float32 [2, 6]"),
    "wrong shape": (_tensors(lambda t: t.update({A: t[A].t().contiguous()})), "is float32 [6, 2], not"),
    "renamed": (_tensors(lambda t: t.update(renamed=t.pop(A))), "is missing"),
    "truncated tensors": (_shorten, "data_offsets do not agree"),
    "grown tensors": (_grow(TENSORS), "bytes where its header accounts for"),
    "no tensors": (lambda folder: (folder / TENSORS).unlink(), "cannot read the file"),
    "tensors that are no tensors": (lambda folder: (folder / TENSORS).write_bytes(b"PK\x03\x04" * 9), "no safetensors file"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), f"no {CONFIG} here"),
    "no folder": (shutil.rmtree, "no such folder"),
    "huge config": (_grow(CONFIG), "the file is too large"),
    "empty config": (_text(""), "cannot be read"),
    "half a config": (_text('{"format": 1, "spec": {'), "cannot be read"),
    "deep config": (_text('{"format":' * 50_000), "cannot be read"),
    "config is a list": (_text("[]"), "it is no JSON object"),
    "other format": (_config(lambda c: c.update(format=2)), "format 2 is not known here"),
    "format is true": (_config(lambda c: c.update(format=True)), "format True is not known here"),
    "no spec": (_config(lambda c: c.pop("spec")), "'spec' is missing"),
    "spec is a text": (_config(lambda c: c.update(spec="x")), "'spec' is missing or no dict"),
    "spec is not valid": (_config(lambda c: c["spec"].update(seed=-1)), "the spec in it is not valid"),
    "spec with an unknown key": (_config(lambda c: c["spec"].update(sede=1)), "the spec in it is not valid"),
    "other seed": (_config(lambda c: c["spec"].update(seed=8)), "it was made by plan"),
    "other rank": (_config(lambda c: c["spec"]["rules"][0].update(rank=1)), "it was made by plan"),
    "other plan": (_config(lambda c: c.update(plan_hash="0" * 64)), "it was made by plan 000000000000"),
    "plan hash is a number": (_config(lambda c: c.update(plan_hash=7)), "'plan_hash' is missing or no str"),
    "base is a list": (_config(lambda c: c.update(base=[])), "'base' is missing or no dict"),
    "base entry is a number": (_config(lambda c: c["base"].update({NORM: 3})), "is damaged"),
    "base shape is a number": (_config(lambda c: c["base"][NORM].update(shape=6)), "is damaged"),
    "base shape holds texts": (_config(lambda c: c["base"][NORM].update(shape=["6"])), "is damaged"),
    "base dtype is a list": (_config(lambda c: c["base"][NORM].update(dtype=[])), "is damaged"),
    "base sum is a number": (_config(lambda c: c["base"][FUSED].update(sha256=1)), "is damaged"),
    "other base shape": (_config(lambda c: c["base"][NORM].update(shape=[7])), f"{NORM} is float32 [6]; the adapter's base had"),
    "other base dtype": (_config(lambda c: c["base"][NORM].update(dtype="float16")), f"{NORM} is float32 [6]; the adapter's base had"),
    "other base bits": (_config(lambda c: c["base"][FUSED].update(sha256="0" * 64)), f"{FUSED} has other values"),
    "base has more": (_config(lambda c: c["base"].update(more=c["base"][NORM])), "the base lacks 'more'"),
    "base has less": (_config(lambda c: c["base"].pop(NORM)), f"the base holds '{NORM}', which"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TAMPERED))
def test_whatever_is_tampered_with_is_an_error_and_the_model_stays(name: str, copied: Path) -> None:
    tamper, message = TAMPERED[name]
    tamper(copied)
    model = ToyModel()
    with unchanged(model, "by a refused load"), pytest.raises(CheckpointError) as caught:
        load(copied, model)
    assert message in str(caught.value)
    assert str(copied) in caught.value.where


@pytest.mark.parametrize("name", ["missing tensor", "other base bits", "other plan", "truncated tensors"])
def test_a_refused_load_leaves_a_running_operation_as_it_was(name: str, copied: Path) -> None:
    TAMPERED[name][0](copied)
    model = ToyModel()
    with operated(model, {"role": r"mlp\.up", **LORA}, name="mine") as op:
        with unchanged(model), pytest.raises(CheckpointError):
            load_adapter(op, copied, name="theirs")
        assert op.names == ("mine",)
    with operate(model, planned(model, *RULES), registry=REGISTRY) as op:
        with unchanged(model), pytest.raises(CheckpointError):
            op.load(copied)


def test_the_folder_of_a_training_names_the_adapter_in_it(copied: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(copied.parent)
    assert caught.value.hint == f"this is a folder of `surgery train`; its adapter is {copied}"
    with pytest.raises(CheckpointError) as caught:
        load(copied.parent / "nowhere")
    assert caught.value.hint.startswith("name the folder that op.save() wrote")


def test_several_things_that_are_wrong_come_at_once(copied: Path) -> None:
    TAMPERED["missing tensor"][0](copied)
    TAMPERED["extra tensor"][0](copied)
    with pytest.raises(CheckpointError) as caught:
        load(copied)
    assert len(caught.value.problems) == 2


def test_one_flipped_bit_in_the_base_is_another_base(made: tuple[Path, torch.Tensor]) -> None:
    model = ToyModel()
    model.body.layers[1].down.weight.data.view(torch.int32)[0, 0] ^= 1
    with (
        unchanged(model),
        pytest.raises(CheckpointError, match=r"body\.layers\.1\.down\.weight has other values") as caught,
    ):
        load(made[0], model)
    assert "load that one" in caught.value.hint


@pytest.mark.parametrize(
    "other", [ToyModel(dtype=torch.bfloat16), ToyModel(layers=1), ToyModel(layers=3), ToyModel(seed=1)]
)
def test_another_base(other: ToyModel, made: tuple[Path, torch.Tensor]) -> None:
    with unchanged(other), pytest.raises(CheckpointError):
        load(made[0], other)


def test_a_replaced_parameter_need_not_be_what_it_was(made: tuple[Path, torch.Tensor]) -> None:
    """A head that was newly made and then trained is in the adapter as a whole."""
    model = ToyModel().eval()
    with torch.no_grad():
        model.body.layers[0].norm.weight.fill_(3.0)
    with unchanged(model), load(made[0], model):
        assert torch.equal(model(ToyModel.batch()), made[1])


def test_a_load_that_is_interrupted_is_taken_back(
    made: tuple[Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ToyModel()
    real, calls = torch.Tensor.copy_, []

    def copy(self: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    with operated(model, *RULES) as op:
        move(op, 9)
        before = model_state(model)
        monkeypatch.setattr(torch.Tensor, "copy_", copy)
        with pytest.raises(KeyboardInterrupt):
            op.load(made[0])
        monkeypatch.undo()
        assert_same_state(before, model_state(model), "by an interrupted load")
        op.load(made[0])


def test_a_merged_adapter_is_not_loaded_over(made: tuple[Path, torch.Tensor]) -> None:
    with operated(ToyModel(), *RULES) as op:
        op.merge()
        with pytest.raises(StateError, match="is merged"):
            op.load(made[0])


def test_which_of_several(tmp_path: Path) -> None:
    model = ToyModel()
    with operated(model, *RULES, name="a") as op:
        op.add(planned(model, *RULES), "b")
        with pytest.raises(StateError, match="which adapter"):
            op.save(tmp_path / "a")
        op.save(tmp_path / "a", "a")
        op.load(tmp_path / "a", "b")
        left, right = op.trainable("a"), op.trainable("b")
        for one, other in zip(left.values(), right.values(), strict=True):
            assert torch.equal(one, other)


def test_a_model_of_transformers(tmp_path: Path) -> None:
    model, batch = build("LlamaForSequenceClassification")
    rules = ({"role": r"(attention|mlp)\..*", **LORA}, {"role": r"head\..*", "adapter": "full"})
    with operated(model, *rules) as op:
        op.save(tmp_path / "a")
        expected = logits(model, batch)
    other, _ = build("LlamaForSequenceClassification")
    other.score.weight.data.normal_()
    with load_adapter(other, tmp_path / "a") as op:
        assert torch.equal(logits(other, batch), expected)
        op.merge()
        assert torch.allclose(logits(other, batch), expected, atol=1e-4)


def test_a_head_of_another_size_is_named_with_both_shapes(tmp_path: Path) -> None:
    model, _ = build("LlamaForSequenceClassification")
    with operated(model, {"role": r"head\..*", "adapter": "full"}) as op:
        op.save(tmp_path / "a")
    other, _ = build("LlamaForSequenceClassification")
    labels, width = other.score.weight.shape
    other.score = torch.nn.Linear(width, labels + 1, bias=False)
    with unchanged(other), pytest.raises(CheckpointError) as caught:
        load(tmp_path / "a", other)
    assert caught.value.what == f"score.weight is {labels + 1}x{width} here and {labels}x{width} in the adapter"
    assert f"num_labels={labels}" in caught.value.hint


def test_an_adapter_that_is_not_installed(copied: Path) -> None:
    config = json.loads((copied / CONFIG).read_text("utf-8"))
    config["spec"]["rules"][0]["adapter"] = "lorra"
    (copied / CONFIG).write_text(json.dumps(config), "utf-8")
    model = ToyModel()
    with unchanged(model), pytest.raises(SurgeryError, match="no adapter is called 'lorra'"):
        load(copied, model)
