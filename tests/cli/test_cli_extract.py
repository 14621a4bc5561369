"""`surgery extract`: answers, JSON, exit codes, and what is typed next."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_support import ROOT, Run


@pytest.fixture
def world(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`base`, and `tuned` with changes of known ranks in attention, and others outside of matrices."""
    from transformers import GPT2LMHeadModel

    (tmp_path / "base").symlink_to(models / "gpt2")
    model = GPT2LMHeadModel.from_pretrained(models / "gpt2")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for index, block in enumerate(model.transformer.h):
            rank = index + 1
            update = torch.randn(16, rank, generator=generator) @ torch.randn(rank, 16, generator=generator)
            block.attn.c_attn.weight[:, :16] += 0.1 * torch.linalg.qr(update)[0][:, :rank] @ torch.eye(rank, 16)
        model.transformer.ln_f.bias += 0.25
    model.save_pretrained(tmp_path / "tuned")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_answer(world: Path, invoke: Run, golden: Callable[[str, str], None]) -> None:
    result = invoke("extract", "base", "tuned", "-o", "adapter", "--energy", "0.99")
    assert result.code == 0, result.err
    golden("extract", result.out)
    assert "next: surgery merge base adapter -o DIR" in result.err
    assert "next: surgery plan adapter/spec.yaml base" in result.err
    assert invoke("check", "adapter/spec.yaml").out == "adapter/spec.yaml: ok, spec adapter, 2 rules\n"
    assert invoke("plan", "adapter/spec.yaml", "base").code == 0
    assert invoke("merge", "base", "adapter", "-o", "merged", "-q").code == 0


def test_json_is_what_the_folder_holds(world: Path, invoke: Run) -> None:
    result = invoke("extract", "base", "tuned", "-o", "adapter", "--rank", "1", "--json")
    told = json.loads(result.out)
    assert result.err == ""
    assert told.pop("out") == "adapter"
    assert told == json.loads((world / "adapter" / "extraction.json").read_text())
    assert [(one["rank"], round(one["kept"], 3)) for one in told["covered"]] == [(1, 1.0), (1, 0.5)]
    assert [(one["kind"], one["name"]) for one in told["uncovered"]] == [("norm", "transformer.ln_f.bias")]


def test_notes(world: Path, invoke: Run) -> None:
    result = invoke("extract", "base", "tuned", "-o", "adapter", "--rank", "16")
    assert "note: 2 of 2 need at least as many numbers as the matrices have: no saving there" in result.err


def test_spec_and_roles(world: Path, invoke: Run, spec: Callable[..., Path]) -> None:
    rules = spec(r"- {role: norm\.final, adapter: full}")
    told = json.loads(invoke("extract", "base", "tuned", "-o", "one", "--spec", rules, "--json").out)
    assert [(one["name"], one["rank"]) for one in told["covered"]] == [("transformer.ln_f.bias", None)]
    told = json.loads(invoke("extract", "base", "tuned", "-o", "two", "--roles", r"attention\.query", "--json").out)
    assert {one["role"] for one in told["covered"]} == {"attention.query"}


def test_exit_codes(world: Path, invoke: Run, spec: Callable[..., Path]) -> None:
    rules = spec(r"- {role: norm\.final, adapter: full}")
    for arguments, code, said in (
        (("base", "tuned", "-o", "a", "--rank", "1", "--energy", "0.5"), 2, "give one of them"),
        (("base", "tuned", "-o", "a", "--spec", rules, "--roles", ".*"), 2, "give one of them"),
        (("base", "tuned", "-o", "a", "--rank", "0"), 2, "rank"),
        (("base", "tuned"), 2, "--out"),
        (("base", "tuned", "-o", "a", "--energy", "1.5"), 3, "the share of energy is 1.5"),
        (("base", "tuned", "-o", "a", "--roles", "mpl.*"), 4, "matches no site"),
        (("base", "tuned", "-o", "a", "--roles", r"mlp\..*"), 8, "nothing that was asked for differs"),
        (("base", "base", "-o", "a"), 8, "there is no difference"),
        (("base", "nowhere", "-o", "a"), 8, "no such folder"),
        (("base", "tuned", "-o", "tuned"), 8, "exists and is not empty"),
    ):
        result = invoke("extract", *arguments)
        assert (result.code, said in result.err) == (code, True), (arguments, result.err)
        assert "Traceback" not in result.err
    assert not (world / "a").exists()


def test_completion_of_the_spec(script: Run) -> None:
    words = "surgery extract a b --spec specs/gpt2-l"
    result = script(_SURGERY_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="5")
    assert result.out.split() == ["specs/gpt2-lora-qv.yaml"]
    assert (ROOT / "specs/gpt2-lora-qv.yaml").is_file()
