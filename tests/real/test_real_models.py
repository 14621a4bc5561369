"""Pretrained models: planned, operated, merged and unmerged with not one bit that differs.

Folders with models are looked for where SURGERY_TEST_MODELS says, or beside the repository in `shared/models`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgery import (
    Rule,
    Spec,
    load_adapter,
    load_registry,
    merge_checkpoint,
    operate,
    plan,
    sites,
    unmerge_checkpoint,
)
from surgery.operation.bits import same_bits

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("SURGERY_TEST_MODELS") or ROOT.parent / "shared" / "models")
FOLDERS = sorted(path.parent for path in MODELS.glob("*/config.json")) if MODELS.is_dir() else []
REGISTRY = load_registry()


@pytest.fixture(scope="module", params=FOLDERS or [None], ids=lambda path: path.name if path else "none")
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip(f"no models in {MODELS}: SURGERY_TEST_MODELS names a folder of them")
    found: Path = request.param
    return found


@pytest.fixture(scope="module")
def model(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def is_described(model: nn.Module) -> bool:
    return REGISTRY.architecture(model.config.model_type) is not None


def spec_for(model: nn.Module) -> Spec:
    if is_described(model):
        rules = [Rule(role=r"(attention|mlp)\..*", adapter="lora", rank=2), Rule(role=r"norm\..*", adapter="full")]
    else:
        target = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.\w+_proj)"
        rules = [Rule(target=target, adapter="lora", rank=2), Rule(target=r".*norm", adapter="full")]
    return Spec(name="real", rules=rules)


def batch(model: nn.Module) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, model.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def differing(model: nn.Module, pristine: dict[str, torch.Tensor]) -> int:
    state = {key: tensor for key, tensor in model.state_dict().items() if "surgery" not in key.split(".")}
    assert list(state) == list(pristine)
    return sum(int((~same_bits(state[key], pristine[key])).sum()) for key in pristine)


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    out: torch.Tensor = model(**batch(model))[0]
    return out


def move(op: Any, scale: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(op.trainable().items()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def test_the_plan_is_the_same_from_the_model_its_configuration_and_its_headers(folder: Path, model: nn.Module) -> None:
    live = {site.key: (site.role, site.layer, site.shape) for site in sites(model, REGISTRY)}
    assert {
        site.key: (site.role, site.layer, site.shape)
        for site in sites(model.config, REGISTRY, auto_class="AutoModelForCausalLM")
    } == live
    headers = {site.key: (site.role, site.layer, site.shape) for site in sites(str(folder), REGISTRY)}
    if is_described(model):
        assert headers == live
    else:  # a tied head that the file leaves out is known to architectures only
        assert headers.items() <= live.items()
    if is_described(model):
        assert not [key for key, (role, *_) in live.items() if role.startswith("other.")]


def test_merge_and_unmerge_differ_in_no_bit(model: nn.Module) -> None:
    decided = plan(spec_for(model), model, REGISTRY)
    pristine = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    plain = logits(model)
    with operate(model, decided, registry=REGISTRY) as op:
        uses = op.probe(**batch(model))
        assert len(uses) == len(decided.edits)
        assert torch.equal(logits(model), plain), "an untrained adapter changes nothing"
        move(op)
        live = logits(model)
        assert not torch.equal(live, plain)
        for _ in range(2):
            op.merge()
            assert differing(model, pristine) > 0
            assert float((logits(model) - live).abs().max()) <= 1e-3 * float(live.abs().max())
            op.unmerge()
            assert differing(model, pristine) == 0
            assert torch.equal(logits(model), live)
    assert differing(model, pristine) == 0
    assert torch.equal(logits(model), plain)


def test_linear_layers_of_a_kind_of_their_own_are_folded_and_not_acted_on(model: nn.Module) -> None:
    """A subclass of nn.Linear may quantise its weight in forward: adding to its output would be another function."""
    decided = plan(spec_for(model), model, REGISTRY)
    with operate(model, decided, registry=REGISTRY) as op:
        for built in op.body.built["default"]:
            host = type(model.get_submodule(built.edit.site.path))._surgery_host_class
            is_plain = host is nn.Linear or host.__name__ == "Conv1D"
            if built.edit.adapter == "lora":
                assert built.folds != is_plain, built.edit.site.key
        if model.config.model_type == "bitnet":
            kinds = {type(model.get_submodule(b.edit.site.path))._surgery_host_class for b in op.body.built["default"]}
            assert any(issubclass(kind, nn.Linear) for kind in kinds)


def test_saving_and_loading_on_the_same_base(model: nn.Module, tmp_path: Path) -> None:
    with operate(model, plan(spec_for(model), model, REGISTRY), registry=REGISTRY) as op:
        move(op)
        op.save(tmp_path / "a")
        expected = logits(model)
    with load_adapter(model, tmp_path / "a", registry=REGISTRY):
        assert torch.equal(logits(model), expected)


def test_originals_on_disk(folder: Path, model: nn.Module) -> None:
    pristine = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with operate(model, plan(spec_for(model), model, REGISTRY), keep="disk", base=folder, registry=REGISTRY) as op:
        move(op)
        op.merge()
        op.unmerge()
    assert differing(model, pristine) == 0


# MiniLM, from the package index --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm_folder() -> Path:
    from surgery import SurgeryError
    from surgery_demo.minilm import find_minilm

    try:
        return Path(find_minilm())
    except SurgeryError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> nn.Module:
    from transformers import AutoModel

    return AutoModel.from_pretrained(minilm_folder).eval()


def test_minilm_has_its_known_counts(minilm: nn.Module) -> None:
    without_pooler = Rule(role=".*", adapter="bias-only", exclude={"role": r"head\..*"})
    assert plan(Spec(name="bias", rules=[without_pooler]), minilm, REGISTRY).parameters == 25_728
    assert (
        plan(Spec(name="bias", rules=[Rule(role=".*", adapter="bias-only")]), minilm, REGISTRY).parameters
        == 25_728 + 384
    )
    full = plan(Spec(name="full", rules=[Rule(role=".*", adapter="full")]), minilm, REGISTRY)
    assert full.parameters == full.model_parameters == 22_713_216


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_minilm_comes_back_bit_for_bit(minilm: nn.Module, dtype: torch.dtype) -> None:
    model = minilm.to(dtype)
    pristine = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    rules = [
        Rule(role=r"attention\.(query|value)", adapter="lora", rank=8, expect=12),
        Rule(role=".*", adapter="bias-only"),
        Rule(role=r"mlp\.up", layers="last 2", adapter="full"),
    ]
    ids = torch.randint(0, 30_000, (2, 16), generator=torch.Generator().manual_seed(0))
    with operate(model, plan(Spec(name="minilm", rules=rules), model, REGISTRY), registry=REGISTRY) as op:
        assert all(count == 1 for count in op.probe(input_ids=ids).values())
        move(op)
        records = op.merge()
        assert differing(model, pristine) > 0
        assert all(0 <= record.unmoved <= 1 and record.delta_rel > 0 for record in records)
        op.unmerge()
        assert differing(model, pristine) == 0
    assert differing(model, pristine) == 0


def on_disk(base: Path, tmp_path: Path, auto: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Merge a checkpoint on disk, load it, and take it back; beside an adapter on the model in memory."""
    model = auto.from_pretrained(base).eval()
    rules = [Rule(role=r"(attention|mlp)\..*", adapter="lora", rank=4)]
    if REGISTRY.architecture(model.config.model_type) is None:
        rules = spec_for(model).rules[:1]
    with operate(model, plan(Spec(name="real", rules=rules), model, REGISTRY), registry=REGISTRY) as op:
        move(op)
        op.save(tmp_path / "adapter")
        operated = logits(model)
        op.merge()
        merged = logits(model)
    merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged", registry=REGISTRY)
    capfd.readouterr()
    found = logits(auto.from_pretrained(tmp_path / "merged").eval())
    assert "warn" not in capfd.readouterr().err.lower()
    assert torch.equal(found, merged), "the weights of the merged checkpoint are those of the merged model"
    unit = torch.finfo(model.dtype).eps
    assert float((found - operated).abs().max() / operated.abs().max()) < 64 * unit
    unmerge_checkpoint(tmp_path / "merged", tmp_path / "back", registry=REGISTRY)
    for path in sorted(path for path in base.rglob("*") if path.is_file()):
        back = tmp_path / "back" / path.relative_to(base)
        if back.exists() or path.suffix == ".safetensors":
            assert back.read_bytes() == path.read_bytes(), path


def test_a_real_checkpoint_is_merged_on_disk(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    on_disk(folder, tmp_path, AutoModelForCausalLM, capfd)


def test_minilm_is_merged_on_disk(minilm_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModel

    on_disk(minilm_folder, tmp_path, AutoModel, capfd)
