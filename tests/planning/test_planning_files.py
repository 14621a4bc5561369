"""Two namings: what files call tensors, and what transformers makes of them while it loads."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import families_core
import families_decoders
import families_experts
import families_hybrids
import families_kin
import families_unusual
import families_various
import pytest
import torch
from families import FAMILIES as ALL
from families import Family, build
from safetensors.torch import load_file, save_file
from torch import nn

from surgery import Architecture, When, load_registry, sites
from surgery.errors import CheckpointError
from surgery.planning.checkpoint import inventory_of_checkpoint
from surgery.planning.headers import read_checkpoint_headers

REGISTRY = load_registry()
FAMILIES = tuple(
    item
    for part in (families_core, families_experts, families_hybrids, families_kin, families_unusual, families_various)
    for item in part.FAMILIES
)


def told(subject: Any) -> dict[str, tuple[object, ...]]:
    return {
        site.key: (site.role, site.stack, site.layer, site.shape, site.dtype, site.host, site.slice, set(site.tied))
        for site in sites(subject, REGISTRY)
    }


@pytest.mark.parametrize("item", FAMILIES, ids=str)
def test_a_folder_tells_the_sites_of_the_model(item: Family, tmp_path: Path) -> None:
    model, _ = build(item)
    live = told(model)
    model.save_pretrained(tmp_path / "original")
    assert told(tmp_path / "original") == live
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    assert told(tmp_path / "fused") == live


RENAMED = tuple(
    item
    for item in families_decoders.FAMILIES
    # A bare Gemma 3 is stored under the names of one with a head.
    if item.kind in ("gpt_neox", "gemma3") and item.cls != "Gemma3Model"
)


@pytest.mark.parametrize("item", RENAMED, ids=str)
def test_older_names_of_modules(item: Family, tmp_path: Path) -> None:
    test_a_folder_tells_the_sites_of_the_model(item, tmp_path)


def test_the_first_names_of_gemma_3(tmp_path: Path) -> None:
    model, _ = build("Gemma3ForConditionalGeneration")
    model.save_pretrained(tmp_path, save_original_format=False)
    old = {"model.language_model": "language_model.model", "model.vision_tower": "vision_tower.vision_model"}
    rename(tmp_path, {**old, "model.multi_modal_projector": "multi_modal_projector"})
    assert not any(name.startswith("model.") for name in read_checkpoint_headers(tmp_path))
    assert told(tmp_path) == told(model)


def rename(folder: Path, names: Mapping[str, str]) -> None:
    """Write a checkpoint again under other names of its tensors."""
    tensors = load_file(folder / "model.safetensors")
    for new, old in names.items():
        tensors = {
            re.sub(rf"(^|\.){re.escape(new)}(?=$|\.)", rf"\g<1>{old}", name): tensor for name, tensor in tensors.items()
        }
    save_file(tensors, folder / "model.safetensors")


LEGACY = ("bert", "electra", "roberta", "xlm-roberta", "albert", "mpnet", "deberta", "deberta-v2", "longformer", "luke",
          "mobilebert", "convbert", "nystromformer", "fnet", "squeezebert")  # fmt: skip


@pytest.mark.parametrize("kind", LEGACY)
def test_gamma_and_beta(kind: str, tmp_path: Path) -> None:
    """What weights and biases of layer norms were called in the first files of BERT and its kin."""
    model, _ = build(next(item for item in ALL if item.kind == kind and item.cls.endswith("ForMaskedLM")))
    model.save_pretrained(tmp_path)
    rename(tmp_path, {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"})
    assert any(name.endswith("LayerNorm.gamma") for name in read_checkpoint_headers(tmp_path))
    assert told(tmp_path) == told(model)


EXPERTS = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "jamba")


@pytest.mark.parametrize("kind", EXPERTS)
def test_files_hold_each_expert_apart(kind: str, tmp_path: Path) -> None:
    """Else the test above would compare equal names."""
    item = next(item for item in families_experts.FAMILIES if item.kind == kind and "ForCausalLM" in item.cls)
    model, _ = build(item)
    model.save_pretrained(tmp_path)
    files, parameters = set(read_checkpoint_headers(tmp_path)), {name for name, _ in model.named_parameters()}
    assert any(".experts.3." in name for name in files - parameters)
    assert any(name.endswith(".experts.gate_up_proj") for name in parameters - files)


def test_shards_may_hold_the_experts_of_one_layer(tmp_path: Path) -> None:
    model, _ = build("Qwen3MoeForCausalLM")
    model.save_pretrained(tmp_path, max_shard_size="6KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert told(tmp_path) == told(model)


def test_planning_from_experts_in_files_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    build("MixtralForCausalLM")[0].save_pretrained(tmp_path)
    code = (
        "import sys, surgery\n"
        "rule = surgery.Rule(role=r'moe\\.experts\\.gate', adapter='lora', rank=2, expect=2)\n"
        "print(surgery.plan(surgery.Spec(name='x', rules=[rule]), sys.argv[1]).parameters)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [str(2 * 4 * 2 * (16 + 24)), "[]"]


# Names alone --------------------------------------------------------------------------------------------------------


def write(folder: Path, tensors: Mapping[str, tuple[int, ...]], dtype: str = "F32") -> Path:
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (offset, offset + size)}
        offset += size
    raw = json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset))
    return folder


def names(folder: Path, config: Mapping[str, Any] | None = None, **options: Any) -> dict[str, tuple[int, ...]]:
    found = inventory_of_checkpoint(folder, Architecture(("x",), "", {}, {}, **options), config or {})
    return {entry.name: entry.shape for entry in found.entries}


VIT = {
    "layers": "encoder.layer",
    **{f"attention.{role[0]}_proj": f"attention.attention.{role}" for role in ("query", "key", "value")},
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


@pytest.mark.parametrize("head", ["Model", "ForImageClassification"])
def test_renamings_are_applied_in_order(head: str, tmp_path: Path) -> None:
    """ViT's files have the names of its first version; one name is renamed twice."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, image_size=4, patch_size=2
    )
    model: nn.Module = getattr(transformers, f"ViT{head}")(config)
    model.save_pretrained(tmp_path)
    live = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert set(read_checkpoint_headers(tmp_path)) != set(live)
    assert names(tmp_path, files=VIT) == live


def test_a_renamed_head(tmp_path: Path) -> None:
    import transformers

    model = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=11
        )
    )
    model.save_pretrained(tmp_path)
    assert "embed_out.weight" in read_checkpoint_headers(tmp_path)
    assert set(names(tmp_path, files={"lm_head": "embed_out"})) == {name for name, _ in model.named_parameters()}


def test_only_whole_parts_of_names_are_renamed(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.mlp.w": (1,), "a.mlpx.w": (1,), "a.xmlp.w": (1,), "mlp": (1,), "a.b.c": (2,)})
    found = names(folder, files={"ffn": "mlp", "q": "b.c"})
    assert set(found) == {"a.ffn.w", "a.mlpx.w", "a.xmlp.w", "ffn", "a.q"}


def test_a_name_may_be_held_to_the_beginning(tmp_path: Path) -> None:
    tensors = {"language_model.lm_head.weight": (1,), "language_model.model.norm.weight": (1,)}
    files = {"lm_head": "^language_model.lm_head", "model.language_model": "^language_model.model"}
    new = {"lm_head.weight", "model.language_model.norm.weight"}
    assert set(names(write(tmp_path / "old", tensors), files=files)) == new
    assert set(names(write(tmp_path / "new", dict.fromkeys(new, (1,))), files=files)) == new


def test_names_are_put_together_along_the_first_axis(tmp_path: Path) -> None:
    folder = write(tmp_path, {"0.q": (4, 3), "0.k": (2, 3), "0.v": (2, 3)})
    assert names(folder, files={"qkv": ("q", "k", "v")}) == {"0.qkv": (8, 3)}


FILES = {"experts.gate_up": ("experts.*.gate", "experts.*.up"), "experts.down": ("experts.*.down",)}


def stack(count: int, **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    made = {f"experts.{n}.{name}": (3, 2) for n in range(count) for name in ("gate", "up")}
    return {**made, **{name.replace("_", "."): shape for name, shape in more.items()}}


def test_experts_are_stacked_whatever_their_number(tmp_path: Path) -> None:
    tensors = stack(12) | {f"experts.{n}.down": (2, 3) for n in range(12)}
    assert names(write(tmp_path, tensors), files=FILES) == {"experts.gate_up": (12, 6, 2), "experts.down": (12, 2, 3)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({k: v for k, v in stack(3).items() if k != "experts.1.up"}, "some of the tensors .* are missing"),
        ({k: v for k, v in stack(3).items() if "up" not in k}, "some of the tensors .* are missing"),
        ({k: v for k, v in stack(3).items() if ".0." not in k}, "some of the tensors .* are missing"),
        (stack(1, experts_999999999_gate=(3, 2), experts_999999999_up=(3, 2)), "some of the tensors .* are missing"),
        (stack(2) | {"experts.gate_up": (2, 6, 2)}, "some of the tensors .* are missing"),
        (stack(3, experts_1_up=(3, 4)), "differ in dtype or shape"),
        (stack(3, experts_1_up=(4, 2)), "differ in dtype or shape"),
        (stack(3, experts_1_up=(3, 2, 1)), "differ in dtype or shape"),
        (dict.fromkeys(stack(2), ()), "differ in dtype or shape"),
        (stack(1) | {"moe.0.up": (3, 2)}, "two tensors would be the model's experts.gate_up"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_an_error(
    tensors: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        names(write(tmp_path, tensors), files={"experts": "moe", **FILES})
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("number", ["01", "-1", "x", "", "1234567890", "\u0661"])
def test_what_is_no_number_is_not_stacked(number: str, tmp_path: Path) -> None:
    assert set(names(write(tmp_path, {f"experts.{number}.down": (2,)}), files=FILES)) == {f"experts.{number}.down"}


def test_a_name_is_changed_only_beside_another(tmp_path: Path) -> None:
    files = {"model.tower": When("^tower", beside="^old.model"), "model.text": "^old.model"}
    old = write(tmp_path / "old", {"tower.w": (1,), "old.model.w": (1,)})
    assert set(names(old, files=files)) == {"model.tower.w", "model.text.w"}
    assert set(names(write(tmp_path / "new", {"tower.w": (1,), "text.w": (1,)}), files=files)) == {"tower.w", "text.w"}


@pytest.mark.parametrize(("count", "owners"), [(1, [1, 1, 1]), (2, [1, 3, 1]), ("blocks", [1, 3, 1]), (3, [1, 3, 6])])
def test_modules_that_layers_share_are_stored_once(count: Any, owners: list[int], tmp_path: Path) -> None:
    tensors = {f"model.layers.{layer}.linear.w": (2,) for layer in (6, 1, 3)} | {"model.layers.0.mamba.w": (2,)}
    folder = write(tmp_path, tensors | {f"model.layers.{owner}.shared.q": (owner, 4) for owner in owners})
    architecture = Architecture(("x",), "", {}, {}, shared={"layers.*.shared": ("layers.*.linear", count)})
    found = inventory_of_checkpoint(folder, architecture, {"blocks": 2})
    shapes = {entry.name: entry.shape for entry in found.entries if ".shared." in entry.name}
    assert shapes == {f"model.layers.{n}.shared.q": (owner, 4) for n, owner in zip((1, 3, 6), owners, strict=True)}
    canonical = {name: found.canonical(name) for name in shapes}
    assert canonical == {name: f"model.layers.{shape[0]}.shared.q" for name, shape in shapes.items()}


def test_what_layers_share_is_bounded(tmp_path: Path) -> None:
    tensors = {f"layers.{layer}.linear.w": (1,) for layer in range(600)}
    folder = write(tmp_path, tensors | {f"layers.0.shared.{part}.w": (1,) for part in range(600)})
    architecture = Architecture(("x",), "", {}, {}, shared={"layers.*.shared": ("layers.*.linear", "blocks")})
    with pytest.raises(CheckpointError, match="more than 250,000 tensors"):
        inventory_of_checkpoint(folder, architecture, {"blocks": 1})
    with pytest.raises(CheckpointError, match="does not say 'blocks'"):
        inventory_of_checkpoint(folder, architecture, {"blocks": True})


def test_buffers_and_layers_that_the_model_does_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path, {"layers.0.w": (1,), "layers.1.w": (1,), "layers.10.w": (1,), "layers.0.bias": (1,)})
    options = {"ignored": ("layers.*.bias", When("^layers.1", {"num_layers": 1}))}
    assert set(names(folder, {"num_layers": 1}, **options)) == {"layers.0.w", "layers.10.w"}
    assert set(names(folder, {"num_layers": 2}, **options)) == {"layers.0.w", "layers.1.w", "layers.10.w"}


def test_deepseek_v3_does_not_read_the_layer_that_predicts_one_more_token(tmp_path: Path) -> None:
    tensors = {f"model.layers.{layer}.self_attn.o_proj.weight": (2, 2) for layer in (0, 60, 61)}
    folder = write(tmp_path, {**tensors, "model.layers.61.eh_proj.weight": (2, 4)})
    for layers, expected in ((61, [0, 60]), (62, [0, 60, 61, 61])):
        (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v3", "num_hidden_layers": layers}))
        assert [site.layer for site in sites(folder, REGISTRY)] == expected
