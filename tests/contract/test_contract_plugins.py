"""Every registered adapter and architecture keeps the contract, and stays as small as promised."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, Family, build
from torch import nn

from surgery import Rule, Spec, load_registry, operate, plan
from surgery.errors import PlanError, PluginError, StateError
from surgery.testing import (
    ToyModel,
    assert_same_state,
    check_adapter,
    check_architecture,
    model_state,
    toy_registry,
)

REGISTRY = load_registry()
LORA = REGISTRY.adapter("lora")
LORA_OPTIONS: dict[str, dict[str, Any]] = {
    "kaiming": {"rank": 2},
    "gaussian": {"rank": 2, "init": "gaussian", "init_std": 0.5},
    "orthogonal": {"rank": 3, "init": "orthogonal"},
    "zeros": {"rank": 2, "init": "zeros"},
    "rslora": {"rank": 4, "rslora": True, "alpha": 3.0},
    "dropout": {"rank": 2, "dropout": 0.4},
    "rank-beyond-the-matrix": {"rank": 9},
}


@pytest.mark.parametrize("name", sorted(REGISTRY.adapters))
def test_adapter(name: str) -> None:
    check_adapter(REGISTRY.adapter(name))


@pytest.mark.parametrize("name", sorted(LORA_OPTIONS))
def test_lora(name: str) -> None:
    check_adapter(LORA, LORA_OPTIONS[name], dtypes=(torch.bfloat16,))  # all dtypes with the default options above


# LoRA with a bias needs hosts that have one, so it cannot target every site as `check_adapter` does -------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("target", [r".*\.fused", r".*\.(output|up)", r".*\.(fused|output|up)"])
def test_lora_with_a_bias(dtype: torch.dtype, target: str, tmp_path: Path) -> None:
    from surgery import load_adapter

    model, batch = ToyModel(dtype=dtype).eval(), ToyModel.batch()
    registry = toy_registry(LORA)
    rule = Rule(target=target, adapter="lora", rank=2, bias=True, allow_oversized=True)
    decided = plan(Spec(name="bias", seed=1, rules=[rule]), model, registry)
    before = model_state(model)
    hosts = {edit.site.path for edit in decided.edits}
    assert decided.parameters == sum(
        2 * (edit.site.fan_in + edit.site.fan_out) + edit.site.fan_out for edit in decided.edits
    )
    with operate(model, decided, registry=registry) as op:
        assert torch.equal(model(batch), ToyModel(dtype=dtype).eval()(batch)), "an untrained adapter changes nothing"
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for _, parameter in sorted(op.trainable().items()):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        live = model(batch).detach()
        op.probe(batch)
        model(batch).float().sum().backward()
        assert all(parameter.grad is not None for parameter in op.trainable().values())
        op.save(tmp_path / "a")
        op.merge()
        bound = {torch.float32: 2e-5, torch.bfloat16: 0.15, torch.float16: 2e-2}[dtype]
        assert float((model(batch) - live).abs().max() / live.abs().max()) < bound
        moved = {
            key for key, bits in model_state(model).bits.items() if key in before.bits and bits != before.bits[key]
        }
        assert moved == {f"{path}.{name}" for path in hosts for name in ("weight", "bias")}
        op.unmerge()
    assert_same_state(before, model_state(model))
    with load_adapter(model, tmp_path / "a", registry=registry):
        assert torch.equal(model(batch), live)


def test_lora_with_a_bias_on_parts_leaves_the_other_part_alone() -> None:
    model = ToyModel(layers=1)
    registry = toy_registry(LORA)
    rule = Rule(role=r"attention\.(query|value)", adapter="lora", rank=2, bias=True)
    fused = model.body.layers[0].fused
    weight, bias = fused.weight.detach().clone(), fused.bias.detach().clone()
    with operate(model, plan(Spec(name="x", rules=[rule]), model, registry), registry=registry) as op:
        with torch.no_grad():
            for parameter in op.trainable().values():
                parameter.add_(0.3)
        op.merge()
        assert torch.equal(fused.bias[6:12], bias[6:12])
        assert torch.equal(fused.weight[:, 6:12], weight[:, 6:12])
        assert not torch.equal(fused.bias[:6], bias[:6])
        assert not torch.equal(fused.bias[12:], bias[12:])


def test_lora_with_a_bias_on_a_host_without_one_is_an_error() -> None:
    rule = Rule(role=r"mlp\.down", adapter="lora", rank=2, bias=True)
    with pytest.raises(PlanError, match="also needs 'bias' of 'body.layers.0.down', which has none"):
        plan(Spec(name="x", rules=[rule]), ToyModel(), toy_registry(LORA))


# Architectures ------------------------------------------------------------------------------------------------------


def _architecture(item: Family) -> Any:
    found = REGISTRY.architecture(item.kind)
    assert found is not None
    return found.value


@pytest.mark.parametrize("item", FAMILIES, ids=str)
def test_architecture(item: Family) -> None:
    model, batch = build(item)
    if item.silent:
        with pytest.raises(StateError) as caught:
            check_architecture(_architecture(item), model, allow_other=item.other, **batch)
        assert {problem.where for problem in caught.value.problems} == set(item.silent)
        return
    check_architecture(_architecture(item), model, allow_other=item.other, **batch)


def test_every_registered_architecture_is_checked() -> None:
    assert {item.kind for item in FAMILIES} == set(REGISTRY.architectures)


# Budgets ------------------------------------------------------------------------------------------------------------
# An adapter plugin's size is the number of its lines that are neither blank, nor comments, nor docstrings, nor imports,
# over all modules of its package, for each adapter that it supplies. An architecture's is the number of non-blank lines of its `Architecture(...)` literal.


def _folder(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _code_lines(path: Path) -> int:
    text = path.read_text("utf-8")
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_text = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            skipped.update(range(node.lineno, (node.end_lineno or 0) + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in skipped
        for number, line in enumerate(text.splitlines(), 1)
    )


def _plugins() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group="surgery") if entry.value.startswith("surgery_")}


@pytest.mark.parametrize("name", sorted({found.provenance.plugin for found in REGISTRY.adapters.values()}))
def test_an_adapter_plugin_is_small(name: str) -> None:
    lines = {path.name: _code_lines(path) for path in sorted(_folder(_plugins()[name]).glob("*.py"))}
    supplied = sum(found.provenance.plugin == name for found in REGISTRY.adapters.values())
    assert sum(lines.values()) <= 80 * supplied, lines


@pytest.mark.parametrize("name", sorted({found.provenance.plugin for found in REGISTRY.architectures.values()}))
def test_an_architecture_is_thirty_lines_of_data(name: str) -> None:
    text = (_folder(_plugins()[name]) / "__init__.py").read_text("utf-8")
    calls = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Architecture"
    ]
    assert calls
    for call in calls:
        lines = text.splitlines()[call.lineno - 1 : call.end_lineno]
        assert sum(bool(line.strip()) for line in lines) <= 30


def test_importing_plugins_imports_neither_torch_nor_transformers() -> None:
    described = {found.provenance.plugin for found in (*REGISTRY.adapters.values(), *REGISTRY.architectures.values())}
    modules = sorted(_plugins()[name] for name in described)
    code = (
        f"import sys, {', '.join(modules)}\n"
        "print(*[name for name in ('torch', 'transformers', 'numpy', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_asking_every_plugin_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, surgery\nsurgery.load_registry()\n"
        "print(*[name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    "name",
    sorted({found.provenance.plugin for found in (*REGISTRY.adapters.values(), *REGISTRY.architectures.values())}),
)
def test_plugins_come_in_by_the_public_door(name: str) -> None:
    import surgery

    for path in _folder(_plugins()[name]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "surgery":
                assert node.module == "surgery", f"{path.name}: from {node.module}"
                assert {alias.name for alias in node.names} <= set(surgery.__all__)
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not any(found.split(".")[0] == "transformers" for found in names)


# The checks themselves ----------------------------------------------------------------------------------------------


def test_check_architecture_finds_what_is_wrong() -> None:
    model, batch = build("GPT2LMHeadModel")
    gpt2 = _architecture(Family("gpt2", "GPT2LMHeadModel"))
    roles = dict(gpt2.roles)
    without = {role: path for role, path in roles.items() if role != "mlp.up"}
    cut = {role: path for role, path in roles.items() if role != "attention.value"}
    twice = replace(gpt2, roles={**roles, "attention.value": roles["attention.key"]})
    with pytest.raises(PluginError, match="has two roles"):
        check_architecture(twice, model, **batch)
    for wrong, message in (
        (replace(gpt2, roles=without), "no role for .*c_fc"),
        (replace(gpt2, roles=cut), "do not tile its 48 indices once"),
        (replace(gpt2, types=("gpt3",)), "the model's type is 'gpt2'"),
        (replace(gpt2, heads={}), "no role for .*lm_head"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_architecture(wrong, model, **batch)


def test_check_architecture_finds_a_table_that_is_read_past_its_module() -> None:
    item = next(item for item in FAMILIES if item.kind == "deberta" and item.config.get("legacy") is False)
    model, batch = build(item)
    wrong = replace(_architecture(item), uncalled=())
    with pytest.raises(AssertionError, match="merging moves outputs by"):
        check_architecture(wrong, model, allow_other=item.other, **batch)


def test_check_architecture_finds_a_parameter_that_is_never_read() -> None:
    model, batch = build("GPT2Model")
    model.h[0].register_module("ln_3", nn.LayerNorm(16))
    gpt2 = _architecture(Family("gpt2", "GPT2Model"))
    with pytest.raises((AssertionError, StateError), match="ln_3"):
        check_architecture(replace(gpt2, roles={**gpt2.roles, "norm.mlp.post": "*.ln_3"}), model, **batch)
