"""`surgery architecture check`: good plugins pass, and each kind of mistake is caught by the name of a check."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Run

from surgery import load_registry
from surgery.testing.architecture_checks import CHECKS
from surgery.testing.tiny import classes_of, tiny_config

PLUGIN = """
from surgery import Architecture, Slice, hookimpl

def third(start):
    return Slice("*.attn.c_attn", view=(3, -1), start=start, axis=1)

MINE = Architecture(
    types=("gpt2",),
    base="transformer",
    stacks={"decoder": "h"},
    roles={
        "embedding.token": "wte",
        "embedding.position": "wpe",
        "norm.attention.pre": "*.ln_1",
        "attention.query": third(0),
        "attention.key": third(1),
        "attention.value": third(2),
        "attention.output": "*.attn.c_proj",
        "norm.mlp.pre": "*.ln_2",
        "mlp.up": "*.mlp.c_fc",
        "mlp.down": "*.mlp.c_proj",
        "norm.final": "ln_f",
    },
    heads={"head.lm": "lm_head", "head.classifier": ("score", "classifier", "qa_outputs")},
)

@hookimpl
def surgery_architectures():
    return [MINE]
"""

NET = """
from types import SimpleNamespace

import torch
from torch import nn

from surgery import Architecture, hookimpl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(model_type="our-net")
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(8, 12), "down": nn.Linear(12, 8)}) for _ in range(2))
        self.out = nn.Linear(8, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        for block in self.blocks:
            x = x + block["down"](torch.relu(block["up"](x)))
        return self.out(x)


def build():
    return Net(), (torch.randn(3, 8),)


@hookimpl
def surgery_architectures():
    roles = {"mlp.up": "*.up", "mlp.down": "*.down"}
    return [Architecture(("our-net",), "", {"encoder": "blocks"}, roles, {"head.classifier": "out"})]
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a plugin with replacements; each text must be there."""
    number = iter(range(100))

    def write(text: str = PLUGIN, *changes: tuple[str, str]) -> Path:
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / f"mine{next(number)}.py"
        path.write_text(text, "utf-8")
        return path

    return write


def verdicts(result: Any) -> dict[str, set[str]]:
    """Check -> its verdicts, of an answer in JSON."""
    found: dict[str, set[str]] = {}
    for row in json.loads(result.out)["checks"]:
        found.setdefault(row["check"], set()).add(row["verdict"])
    return found


def test_a_good_plugin_passes(plugin: Callable[..., Path], invoke: Run) -> None:
    result = invoke("architecture", "check", plugin(), "--quiet")
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert {line[0] for line in lines} == {"ok"}
    assert {line[2] for line in lines} == {*classes_of("gpt2"), "all"}
    for name in classes_of("gpt2"):
        checks = [line[3] for line in lines if line[2] == name]
        assert [check for check in checks if check != "measure"] == [c for c in CHECKS if c not in ("heads", "measure")]
    assert [line[4:7] for line in lines if line[3] == "measure"] == [["4", "of", "4"]]
    assert lines[-1][:5] == ["ok", "gpt2", "all", "classes", "heads"]


def test_progress_and_a_next_step(plugin: Callable[..., Path], invoke: Run) -> None:
    result = invoke("architecture", "check", plugin(), "--head", "GPT2Model", "--head", "GPT2LMHeadModel")
    assert "[0/2] gpt2 GPT2LMHeadModel" in result.err and "[2/2] done" in result.err
    assert "next: compare the parts" in result.err


MISTAKES = {
    "no role": (('        "mlp.up": "*.mlp.c_fc",\n', ""), "roles", "no role (and 1 more like it)"),
    "another path": (('"*.ln_2"', '"*.ln_3"'), "roles", "no role"),
    "a hole": (('        "attention.value": third(2),\n', ""), "slices", "have no role beside attention.query"),
    "an overlap": (("third(1)", "third(0)"), "slices", "has two roles: attention.query and attention.key"),
    "whole and part": (('"*.attn.c_proj"', '("*.attn.c_proj", "*.attn.c_attn")'), "slices", "has two roles"),
    "a view that does not fit": (("view=(3, -1)", "view=(5, -1)"), "slices", "cannot be seen as"),
    "another axis": (("axis=1", "axis=0"), "slices", "cannot be seen as"),
    "another base": (('base="transformer"', 'base="model"'), "roles", "no role"),
    "another stack": (('"decoder": "h"', '"decoder": "layers"'), "roles", "no role"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught_by_the_name_of_a_check(mistake: str, plugin: Callable[..., Path], invoke: Run) -> None:
    change, check, message = MISTAKES[mistake]
    result = invoke("architecture", "check", plugin(PLUGIN, change), "--json", "--head", "GPT2LMHeadModel")
    assert result.code == 5
    assert verdicts(result)[check] == {"failed"}
    failed = {row["check"] for row in json.loads(result.out)["checks"] if row["verdict"] == "failed"}
    assert failed == {check}
    problems: Any = result.error["problems"]
    assert any(message in problem["what"] for problem in problems)
    assert all(problem["where"].startswith(f"gpt2, GPT2LMHeadModel, {check}") for problem in problems)
    assert all(problem["hint"] for problem in problems)


def test_a_misspelt_role_is_told(plugin: Callable[..., Path], invoke: Run) -> None:
    result = invoke("architecture", "check", plugin(PLUGIN, ('"mlp.up"', '"mlp.upp"')))
    assert result.code == 5 and "unknown role 'mlp.upp'" in result.err and "did you mean 'mlp.up'" in result.err


def test_a_head_without_a_role_is_told_or_named(plugin: Callable[..., Path], invoke: Run) -> None:
    path = plugin(PLUGIN, (', "qa_outputs"', ""))
    result = invoke("architecture", "check", path, "--quiet")
    assert result.code == 5
    assert "gpt2, GPT2ForQuestionAnswering, roles: qa_outputs.weight: no role" in result.err
    suggested = re.findall(r"--other '([^']+)'", result.err)
    options = [word for pattern in suggested for word in ("--other", pattern)]
    assert invoke("architecture", "check", path, "--quiet", *options).code == 0


def test_heads_that_disagree(plugin: Callable[..., Path], invoke: Run) -> None:
    change = ('        "embedding.token": "wte",\n', "")
    heads = ('heads={"head.lm": "lm_head",', 'heads={"embedding.token": "transformer.wte", "embedding.class": "wte",'
             '"head.lm": "lm_head",')  # fmt: skip
    result = invoke("architecture", "check", plugin(PLUGIN, change, heads), "--json")
    assert result.code == 5
    found = verdicts(result)
    assert found["heads"] == {"failed"}
    problems: Any = result.error["problems"]
    problem = next(problem for problem in problems if ", heads: " in problem["where"])
    assert problem["where"] == "gpt2, heads: wte.weight"
    assert "embedding.class in GPT2Model" in problem["what"] and "embedding.token in" in problem["what"]


NET_MISTAKES = {
    "a weight that is read past its module": (
        (
            ('x = x + block["down"](torch.relu(block["up"](x)))', 'x = x + past(block["down"], torch.relu(block["up"](x)))'),
            ("def build", "def past(layer, x):\n    return nn.functional.linear(x, layer.weight, layer.bias)\n\n\ndef build"),
        ),
        {"forward", "merge"},
    ),
    "a weight that is never used": (
        (("return self.out(x)", "return x"),),
        {"forward"},
    ),
    "a forward that writes to the model": (
        (("return self.out(x)", "self.seen.add_(1)\n        return self.out(x)"),),
        {"identity"},
    ),
    "other weights on the meta device": (
        (
            ("def forward", "def _apply(self, fn, recurse=True):\n        self.out.bias = None\n        return super()._apply(fn, recurse)\n\n    def forward"),
        ),
        {"meta"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", NET_MISTAKES)
def test_a_model_of_a_factory_that_does_not_fit(mistake: str, plugin: Callable[..., Path], invoke: Run) -> None:
    changes, checks = NET_MISTAKES[mistake]
    path = plugin(NET, *changes)
    result = invoke("architecture", "check", path, "--factory", f"{path}:build", "--json")
    assert {row["check"] for row in json.loads(result.out)["checks"] if row["verdict"] == "failed"} == checks
    assert result.code == 5


def test_a_factory(plugin: Callable[..., Path], invoke: Run) -> None:
    path = plugin(NET)
    result = invoke("architecture", "check", path, "--factory", f"{path}:build", "--quiet")
    assert (result.code, result.err) == (0, "")
    assert len(result.out.splitlines()) == len(CHECKS) - 2  # no heads to compare, no small model to measure
    for body in ('Net(), {"x": torch.randn(3, 8)}', "Net(), torch.randn(3, 8)"):
        path = plugin(NET, ("Net(), (torch.randn(3, 8),)", body))
        assert invoke("architecture", "check", path, "--factory", f"{path}:build", "--quiet").code == 0


def test_unused_by_intention(plugin: Callable[..., Path], invoke: Run) -> None:
    path = plugin(NET, ("return self.out(x)", "return x"))
    result = invoke("architecture", "check", path, "--factory", f"{path}:build", "--quiet")
    assert r"--unused '.*\bout\.weight'" in result.err
    options = ("--factory", f"{path}:build", "--unused", r"out\..*")
    assert invoke("architecture", "check", path, *options, "--quiet").code == 0


def test_a_type_that_transformers_does_not_know(plugin: Callable[..., Path], invoke: Run) -> None:
    result = invoke("architecture", "check", plugin(NET), "--quiet")
    assert result.code == 5
    assert result.out.split()[:5] == ["failed", "our-net", "all", "classes", "build"]
    assert "transformers knows no model of type 'our-net'" in result.err
    assert "--factory MODULE:FUNCTION" in result.err and "(model, inputs)" in result.err


def test_a_configuration_of_ones_own(plugin: Callable[..., Path], invoke: Run, models: Path) -> None:
    options = ("--head", "GPT2Model", "--quiet")
    config = models / "gpt2" / "config.json"
    assert invoke("architecture", "check", plugin(), "--config", config, *options).code == 0
    result = invoke("architecture", "check", plugin(), "--config", models / "llama", *options)
    assert result.code == 5 and "its type is 'llama', which the plugin does not describe" in result.err


def test_the_file_that_is_named_is_read(plugin: Callable[..., Path], invoke: Run, models: Path, tmp_path: Path) -> None:
    for name, model in (("config.json", "llama"), ("wide.json", "gpt2")):
        (tmp_path / name).write_bytes((models / model / "config.json").read_bytes())
    options = ("--head", "GPT2Model", "--quiet")
    assert invoke("architecture", "check", plugin(), "--config", tmp_path / "wide.json", *options).code == 0


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no module": (("surgery_nothing_here",), "there is no such module or file"),
    "a plugin's name": (("gpt2",), "did you mean 'surgery_gpt2'?"),
    "no file": (("nothing/here.py",), "there is no such file"),
    "no architecture": (("surgery_lora",), "it supplies no architecture"),
    "no head": (("surgery_gpt2", "--head", "GPT2Modle"), "did you mean 'GPT2Model'"),
    "no function": (("surgery_gpt2", "--factory", "surgery_gpt2:build"), "has no function 'build'"),
    "no factory": (("surgery_gpt2", "--factory", "surgery_gpt2"), "it must be MODULE:FUNCTION"),
    "no pattern": (("surgery_gpt2", "--other", "("), "is no regular expression"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_checked_is_refused(case: str, invoke: Run) -> None:
    arguments, message = REFUSED[case]
    result = invoke("architecture", "check", *arguments, "--quiet")
    assert (result.code, result.out) == (5, "")
    assert message in result.err and "hint: " in result.err


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no')", "it failed: ValueError: no"),
        ("return Net()", "it returned Net"),
        ("return Net(), 3", "its inputs are int"),
        ("return Net(), (torch.randn(3, 7),)", "cannot be called with its inputs"),
        ("return nn.Linear(2, 2), (torch.randn(3, 2),)", "the model's type is 'None'"),
    ],
)
def test_a_factory_that_fails(body: str, message: str, plugin: Callable[..., Path], invoke: Run) -> None:
    path = plugin(NET, ("return Net(), (torch.randn(3, 8),)", body))
    result = invoke("architecture", "check", path, "--factory", f"{path}:build", "--quiet")
    assert result.code == 5 and message in result.err


@pytest.mark.parametrize("text", ["import nothing_of_the_kind", "raise SystemExit(3)", "def f(:"])
def test_a_module_that_cannot_be_imported(text: str, plugin: Callable[..., Path], invoke: Run) -> None:
    result = invoke("architecture", "check", plugin(text))
    assert result.code == 5 and "it cannot be imported" in result.err


def test_a_package_and_a_name_in_the_working_folder(
    tmp_path: Path, invoke: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "surgery_of_mine").mkdir()
    (tmp_path / "surgery_of_mine" / "__init__.py").write_text(PLUGIN, "utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("surgery_of_mine", tmp_path / "surgery_of_mine"):
        assert invoke("architecture", "check", name, "--head", "GPT2Model", "--quiet").code == 0


def test_what_cannot_be_called_is_skipped_and_told(
    plugin: Callable[..., Path], invoke: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GPT2Model

    def forward(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ValueError("ask for something else")

    monkeypatch.setattr(GPT2Model, "forward", forward)
    result = invoke("architecture", "check", plugin(), "--json")
    assert result.code == 5
    rows = json.loads(result.out)["checks"]
    assert {row["verdict"] for row in rows[:-1]} == {"skipped"}
    assert rows[-1]["problems"][0]["what"].startswith("no class of the type can be built and called")


@pytest.mark.parametrize("kind", sorted(load_registry().architectures))
def test_a_small_configuration_of_every_described_type(kind: str) -> None:
    # Layers, or parts, in lists that go with other settings, and a default that builds no model.
    if kind in ("funnel", "gemma3", "lfm2_moe", "zamba", "dbrx"):
        pytest.skip("needs --config")
    assert tiny_config(kind).model_type == kind
    assert classes_of(kind)


def test_a_small_configuration_keeps_one_group_of_keys() -> None:
    """GPT-BigCode says twice that all heads share one, and two groups would go with neither."""
    made = tiny_config("gpt_bigcode")
    assert made.multi_query
    assert (made.num_key_value_heads, made.num_attention_heads) == (1, 4)


@pytest.mark.parametrize("module", ["surgery_bert", "surgery_t5", "surgery_llama"])
def test_built_in_plugins(module: str, invoke: Run) -> None:
    heads = {"surgery_bert": ["BertForMaskedLM", "ElectraForMaskedLM"], "surgery_t5": ["T5ForConditionalGeneration"],
             "surgery_llama": ["LlamaForCausalLM"]}[module]  # fmt: skip
    options = [word for head in heads for word in ("--head", head)]
    result = invoke("architecture", "check", module, "--json", *options)
    rows = json.loads(result.out)["checks"]
    assert {row["verdict"] for row in rows if row["model"]} == {"ok"}


def test_completion_of_modules(script: Run) -> None:
    words = "surgery architecture check surgery_be"
    result = script(_SURGERY_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="3")
    assert result.out.split() == ["surgery_bert"]
