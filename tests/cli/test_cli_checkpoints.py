"""`surgery merge`, `unmerge`, `verify` and `diff`: answers, JSON and exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from cli_support import Run
from safetensors.torch import load_file, save_file

import surgery


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "notes").mkdir()
    generator = torch.Generator().manual_seed(0)
    held = {f"{name}.weight": torch.randn(8, 8, generator=generator).bfloat16() for name in ("map", "other")}
    save_file(held, tmp_path / "base" / "model.safetensors")
    factors = {f"base_model.model.map.lora_{half}.weight": torch.ones(2, 8) / 8 for half in "A"}
    factors["base_model.model.map.lora_B.weight"] = torch.ones(8, 2) / 8
    save_file(factors, tmp_path / "notes" / "adapter_model.safetensors")
    (tmp_path / "notes" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_and_back(world: Path, invoke: Run) -> None:
    result = invoke("merge", "base", "notes", "-o", "tuned")
    assert result.code == 0, result.err
    assert result.out.startswith("merged notes into")
    assert "plan: 1 parameter is computed, the rest of 2 tensors in 1 file is copied" in result.err
    assert "next: surgery verify tuned" in result.err
    assert "already holds notes" in invoke("merge", "base", "notes", "-o", "tuned").out
    assert invoke("verify", "tuned", "--base", "base").out.startswith("right: 2 tensors")
    assert invoke("unmerge", "tuned", "-o", "back", "-q").code == 0
    assert (world / "back" / "model.safetensors").read_bytes() == (world / "base" / "model.safetensors").read_bytes()
    assert invoke("diff", "base", "back").out == "the same: all 2 tensors, bit for bit\n"
    shown = invoke("diff", "base", "tuned").out
    assert "1 tensors differ, 1 are the same" in shown
    assert "map.weight" in shown


def test_a_dry_run_writes_nothing(world: Path, invoke: Run) -> None:
    before = sorted(world.rglob("*"))
    told = json.loads(invoke("merge", "base", "notes", "-o", "tuned", "--dry-run", "--json").out)
    assert told["parameters"] == {"map.weight": ["notes"]}
    assert told["write"] == (world / "base" / "model.safetensors").stat().st_size
    shown = invoke("merge", "base", "notes", "--in-place", "--dry-run", "--dtype", "fp32").out
    assert shown.startswith("nothing was written; 2 parameters are computed")
    assert "map.weight             W + notes" in shown
    assert "other.weight  W in another dtype" in shown
    refused = invoke("merge", "base", "notes", "-o", "tuned", "--dry-run", "--weights", "other=2")
    assert "a weight is given for 'other', which is not merged" in refused.err
    assert sorted(world.rglob("*")) == before


def test_words_of_options_complete(world: Path, invoke: Run, script: Run) -> None:
    def completed(*words: object) -> list[str]:
        line = " ".join(["surgery", *map(str, words)])
        return script(_SURGERY_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words))).out.split()

    assert completed("merge", "base", "notes", "--undo", "") == ["residue", "file", "copy", "none"]
    assert completed("merge", "base", "notes", "--dtype", "b") == ["bfloat16"]
    assert completed("merge", "base", "notes", "--engine", "") == ["local", "ray"]
    invoke("merge", "base", "notes", "-o", "tuned", "-q")
    assert completed("unmerge", world / "tuned", "--adapter", "") == ["notes"]
    assert completed("unmerge", "nowhere", "--adapter", "") == []


def test_json_holds_every_tensor(world: Path, invoke: Run) -> None:
    told = json.loads(invoke("merge", "base", "notes", "-o", "tuned", "--json").out)
    (record,) = told["tensors"]
    assert record["name"] == "map.weight"
    assert record["elements"] == 64
    assert 0 < record["delta_rel"] < 1
    assert told["adapters"] == ["notes"]
    found = json.loads(invoke("diff", "base", "tuned", "--json").out)
    assert [one["name"] for one in found["tensors"]] == ["map.weight"]
    assert found["tensors"][0]["effective_rank"] >= 1


def test_exit_codes(world: Path, invoke: Run) -> None:
    assert invoke("merge", "base", "nowhere", "-o", "tuned").code == 8
    assert invoke("merge", "base", "notes", "-o", "tuned", "--undo", "nothing").code == 2
    assert invoke("merge", "base", "notes", "-o", "tuned", "--weights", "notes").code == 2
    assert invoke("unmerge", "base", "-o", "out").code == 6
    assert invoke("merge", "base", "mine=notes", "-o", "tuned", "--weights", "mine=0.5", "-q").code == 0
    path = world / "tuned" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert invoke("verify", "tuned").code == 7
    assert invoke("unmerge", "tuned", "-o", "out").code == 7
    assert not (world / "out").exists()


def test_in_place(world: Path, invoke: Run) -> None:
    before = (world / "base" / "model.safetensors").read_bytes()
    for words in (("merge", "base", "notes"), ("unmerge", "base")):
        both = invoke(*words, "-o", "out", "--in-place")
        assert (both.code, "not to both" in both.err) == (6, True)
        neither = invoke(*words)
        assert (neither.code, "--in-place" in neither.err) == (6, True)
    assert invoke("merge", "base", "notes", "--in-place").out.startswith("merged notes into")
    assert invoke("merge", "base", "notes", "--in-place").out == "base already holds notes\n"
    assert invoke("verify", "base").out.startswith("right: 2 tensors")
    result = invoke("unmerge", "base", "--in-place")
    assert "this is the base, bit for bit" in result.out
    assert "next: surgery verify base" in result.err
    assert invoke("unmerge", "base", "--in-place").out.startswith("base was unmerged before")
    assert (world / "base" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in (world / "base").iterdir()) == ["model.safetensors", "surgery-receipt.json"]


def test_another_dtype(world: Path, invoke: Run) -> None:
    assert invoke("merge", "base", "notes", "-o", "out", "--dtype", "float8").code == 2
    refused = invoke("merge", "base", "notes", "-o", "out", "--dtype", "float16")
    assert (refused.code, "--undo copy" in refused.err) == (6, True)
    assert invoke("merge", "base", "notes", "-o", "out", "--dtype", "float32").out.startswith("merged notes into")
    assert {tensor.dtype for tensor in load_file(world / "out" / "model.safetensors").values()} == {torch.float32}
    assert "this is the base" in invoke("unmerge", "out", "-o", "back").out
    assert (world / "back" / "model.safetensors").read_bytes() == (world / "base" / "model.safetensors").read_bytes()


def test_engines(world: Path, invoke: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("merge", "base", "notes", "-o", "out", "--engine", "cluster").code == 2
    assert invoke("merge", "base", "notes", "-o", "out", "--engine", "local", "--jobs", "1").code == 0
    assert invoke("merge", "base", "notes", "-o", "threads").code == 0
    assert (world / "out" / "model.safetensors").read_bytes() == (world / "threads" / "model.safetensors").read_bytes()
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = invoke("merge", "base", "notes", "-o", "more", "--engine", "ray")
    assert (missing.code, "pip install" in missing.err) == (6, True)


def test_errors_say_what_to_type(world: Path, invoke: Run) -> None:
    assert invoke("merge", "base", "notes", "-o", "tuned", "-q").code == 0
    again = invoke("merge", "tuned", "b=notes", "-o", "more", "--weights", "b=2")
    assert (again.code, "'b' is merged already, as 'notes'" in again.err) == (6, True)
    assert "surgery unmerge MERGED --adapter notes" in again.err
    twice = invoke("merge", "base", "a=notes", "b=notes", "-o", "more")
    assert (twice.code, "give it once; --weights a=2" in twice.err) == (6, True)
    (world / "base" / "config.json").write_text("{}")
    swapped = invoke("merge", "notes", "base", "-o", "more")
    assert (swapped.code, "takes the base first, then adapters" in swapped.err) == (8, True)
    assert "this is an adapter" in invoke("verify", "notes").err
    named = invoke("merge", "demo:gpt2", "notes", "-o", "more")
    assert (named.code, "demo:gpt2 lies in /" in named.err) == (8, True)
    assert "hf download" in invoke("merge", "gpt2", "notes", "-o", "more").err


def test_another_base_is_told_as_such(world: Path, invoke: Run) -> None:
    (world / "elsewhere").mkdir()
    save_file({"encoder.layer.0.dense.weight": torch.ones(8, 8)}, world / "elsewhere" / "model.safetensors")
    refused = invoke("merge", "elsewhere", "notes", "-o", "out")
    assert (refused.code, "trained on another base: name that one" in refused.err) == (8, True)
    invoke("merge", "base", "notes", "-o", "tuned", "-q")
    differs = invoke("verify", "base", "--base", "tuned")
    assert differs.code == 7
    assert "base: map.weight has other bits than in the base tuned" in differs.err


def test_progress_of_few_bytes_is_in_kilobytes_and_comes_to_its_end(world: Path, invoke: Run) -> None:
    lines = [line for line in invoke("merge", "base", "notes", "-o", "tuned").err.splitlines() if line[:1] == "["]
    done, _, total = lines[-1].partition("]")[0].strip("[ ").partition("/")
    assert lines[-1].endswith("merging (kB)")
    assert done == total


def test_progress_ends_where_the_merged_dtype_is_another(world: Path, invoke: Run) -> None:
    assert invoke("merge", "base", "notes", "-o", "tuned", "--dtype", "float32", "-q").code == 0
    told: list[tuple[int, int]] = []
    surgery.unmerge_checkpoint("tuned", "back", progress=lambda done, total, _: told.append((done, total)))
    assert told[-1] == (256, 256)


def test_ctrl_c_says_how_to_go_on(world: Path, invoke: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        (world / ".tuned.surgery-shards").mkdir(exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("surgery.checkpoint.merge.merge_checkpoint", stopped)
    monkeypatch.setattr("surgery.checkpoint.merge.unmerge_checkpoint", stopped)
    for words in (("merge", "base", "notes", "-o", "tuned"), ("unmerge", "tuned", "-o", "back")):
        result = invoke(*words)
        assert (result.code, "the same command again finishes it" in result.err) == (130, True)
        assert "remove" not in result.err
    shards = invoke("merge", "base", "notes", "-o", "tuned", "--engine", "local", "-j", "1")
    assert (shards.code, "remove .tuned.surgery-shards" in shards.err) == (130, True)
