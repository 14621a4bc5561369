"""PEFT's adapters of expert stacks and its saved modules, as PEFT itself merges them; others are refused by field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from merging import base_of, bytes_of
from operating import REGISTRY
from safetensors.torch import load_file
from test_checkpoint_rounding import peft_folder

from surgery import merge_checkpoint, unmerge_checkpoint
from surgery.errors import CheckpointError

EXPERTS = "model.layers.0.mlp.experts"
TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def factors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Factors of rank 2 for both stacks of the first layer, the first parameter innermost, as PEFT nests them."""
    held, generator = dict(model.named_parameters()), torch.Generator().manual_seed(0)
    made = {}
    for path, name in ((f"{EXPERTS}.base_layer", "gate_up_proj"), (EXPERTS, "down_proj")):
        count, out, into = held[f"{EXPERTS}.{name}"].shape
        made[f"{path}.lora_A.weight"] = torch.randn(2 * count, into, generator=generator)
        made[f"{path}.lora_B.weight"] = torch.randn(out, 2 * count, generator=generator) / 16
    return made


def test_stacks_of_experts(tmp_path: Path) -> None:
    model = base_of(tmp_path / "base", "MixtralForCausalLM", torch.float32)
    made = factors(model)
    folder = peft_folder(tmp_path / "a", made, target_parameters=TARGETS, lora_alpha=4)
    report = merge_checkpoint(tmp_path / "base", folder, tmp_path / "out", registry=REGISTRY)
    assert {one.name for one in report.tensors} == {f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"}
    from transformers import AutoModelForCausalLM

    got = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    for path, name in ((f"{EXPERTS}.base_layer", "gate_up_proj"), (EXPERTS, "down_proj")):
        before = dict(model.named_parameters())[f"{EXPERTS}.{name}"].detach().double()
        down, up = (made[f"{path}.lora_{half}.weight"].double() for half in "AB")
        change = torch.einsum("ore,eri->eoi", up.reshape(len(up), 2, -1), down.reshape(before.shape[0], 2, -1))
        assert torch.equal(got[f"{EXPERTS}.{name}"], (before + 2.0 * change).float())
    unmerge_checkpoint(tmp_path / "out", tmp_path / "back", registry=REGISTRY)
    assert bytes_of(tmp_path / "back") == bytes_of(tmp_path / "base")


def test_as_peft_merges_them(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = base_of(tmp_path / "base", "MixtralForCausalLM", torch.float64)
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj"], target_parameters=TARGETS, init_lora_weights=False
    )
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path / "a")
    want = dict(wrapped.merge_and_unload().named_parameters())
    merge_checkpoint(tmp_path / "base", tmp_path / "a", tmp_path / "out", registry=REGISTRY)
    from transformers import AutoModelForCausalLM

    got = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64).named_parameters())
    base = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64).named_parameters())
    assert not torch.equal(got[f"{EXPERTS}.down_proj"], base[f"{EXPERTS}.down_proj"])
    for name, tensor in got.items():  # PEFT rounds on its way; the change itself is about a hundredth
        assert float((tensor - want[name]).detach().abs().max()) < 1e-6, name


def test_saved_modules_take_the_place_of_the_base(tmp_path: Path) -> None:
    model = base_of(tmp_path / "base", "LlamaForCausalLM", torch.bfloat16)
    held = dict(model.named_parameters())
    name = "model.layers.0.self_attn.q_proj"
    out, into = held[f"{name}.weight"].shape
    tensors = {
        f"{name}.lora_A.weight": torch.ones(2, into),
        f"{name}.lora_B.weight": torch.ones(out, 2) / 8,
        "lm_head.weight": torch.randn(held["lm_head.weight"].shape, generator=torch.Generator().manual_seed(0)),
    }
    folder = peft_folder(tmp_path / "a", tensors, modules_to_save=["lm_head"])
    merge_checkpoint(tmp_path / "base", folder, tmp_path / "out", registry=REGISTRY)
    got = {k: v for path in (tmp_path / "out").glob("*.safetensors") for k, v in load_file(path).items()}
    assert torch.equal(got["lm_head.weight"], tensors["lm_head.weight"].bfloat16())
    assert not torch.equal(got[f"{name}.weight"], held[f"{name}.weight"])
    unmerge_checkpoint(tmp_path / "out", tmp_path / "back", registry=REGISTRY)
    assert bytes_of(tmp_path / "back") == bytes_of(tmp_path / "base")


REFUSED = {
    "tied": "modules_to_save: lm_head.weight is tied in the base",
    "shape": r"lm_head.weight is \[.*\] in the base and \[3, 3\]",
    "missing": "no score.weight in the base",
    "unsaid": "it is no LoRA factor",
    "dora": r"DoRA \(use_dora\) is not read",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_modules_that_cannot_be_said(kind: str, tmp_path: Path) -> None:
    tie = {"tie_word_embeddings": True} if kind == "tied" else {}
    model = base_of(tmp_path / "base", "LlamaForCausalLM", torch.float32, **tie)
    head = dict(model.state_dict())["lm_head.weight"].clone()
    tensors = {"score.weight" if kind == "missing" else "lm_head.weight": torch.ones(3, 3) if kind == "shape" else head}
    config = {} if kind == "unsaid" else {"modules_to_save": ["lm_head", "score"]}
    folder = peft_folder(tmp_path / "a", tensors, use_dora=kind == "dora", **config)
    with pytest.raises(CheckpointError, match=REFUSED[kind]):
        merge_checkpoint(tmp_path / "base", folder, tmp_path / "out", registry=REGISTRY)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["shapes", "targets", "pattern"])
def test_experts_that_cannot_be_told(kind: str, tmp_path: Path) -> None:
    made = factors(base_of(tmp_path / "base", "MixtralForCausalLM", torch.float32))
    if kind == "shapes":
        made[f"{EXPERTS}.lora_B.weight"] = made[f"{EXPERTS}.lora_B.weight"][:-1]
    config = {"target_parameters": ["nowhere"] if kind == "targets" else TARGETS}
    if kind == "pattern":
        config["alpha_pattern"] = {"experts": 3}
    folder = peft_folder(tmp_path / "a", made, **config)
    assert json.loads((folder / "adapter_config.json").read_text())["target_parameters"]
    with pytest.raises(CheckpointError, match="target_parameters"):
        merge_checkpoint(tmp_path / "base", folder, tmp_path / "out", registry=REGISTRY)


def test_of_another_base_a_few_problems_are_told(tmp_path: Path) -> None:
    base_of(tmp_path / "base", "LlamaForCausalLM", torch.float32)
    made = {}
    for layer in range(6):
        for name in ("q_proj", "v_proj"):
            path = f"model.layers.{layer}.self_attn.{name}"
            made[f"{path}.lora_A.weight"], made[f"{path}.lora_B.weight"] = torch.ones(2, 3), torch.ones(3, 2)
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoint(tmp_path / "base", peft_folder(tmp_path / "a", made), tmp_path / "out", registry=REGISTRY)
    assert len(caught.value.problems) == 9
    assert caught.value.problems[-1].what == "and 4 more problems of the same adapter"
    assert "another base" in caught.value.problems[-1].hint
