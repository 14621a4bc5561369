"""Adapters out of full fine-tunes: what they hold, what they say, and that they are adapters like any other."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from families import build
from operating import REGISTRY
from safetensors.torch import load_file, save_file
from tuning import PLANTED, base_and_tuned, canonical

import surgery
from surgery import errors
from surgery.registry import load_spec

FAMILIES = (
    "GPT2LMHeadModel",
    "BertForMaskedLM",
    "LlamaForCausalLM",
    "MixtralForCausalLM",
    "T5ForConditionalGeneration",
)


def _fresh(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model: torch.nn.Module = getattr(transformers, name).from_pretrained(folder, dtype=dtype).eval()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_planted_changes_come_back(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, tuned = base_and_tuned(tmp_path, family, dtype)
    out = tmp_path / "out"
    report = surgery.extract(tmp_path / "base", tmp_path / "tuned", out, energy=0.999, registry=REGISTRY)
    assert report.covered
    assert not report.uncovered
    for one in report.covered:
        delta = canonical(tuned, one.name) - canonical(base, one.name)
        if dtype == torch.float32:  # the rounding of bfloat16 is no change of rank 3
            assert one.rank == min(PLANTED, one.full_rank), one
        assert one.kept >= 0.999 - 1e-6
        assert one.relative_norm == pytest.approx(float(delta.norm() / canonical(base, one.name).norm()))
    spec = load_spec(out / "spec.yaml", REGISTRY)
    op = surgery.load_adapter(_fresh(tmp_path / "base", dtype), out, registry=REGISTRY)
    assert surgery.plan(spec, tmp_path / "base", REGISTRY).hash == op.plan("default").hash
    op.merge()
    merged = op.finalize()
    for one in report.covered:
        delta = canonical(tuned, one.name) - canonical(base, one.name)
        lost = canonical(merged, one.name) - canonical(tuned, one.name)
        rounding = float(canonical(tuned, one.name).norm()) * torch.finfo(dtype).eps
        assert float(lost.norm()) == pytest.approx(one.error * float(delta.norm()), abs=rounding)
    surgery.merge_checkpoint(tmp_path / "base", out, tmp_path / "merged", registry=REGISTRY)
    on_disk = dict(_fresh(tmp_path / "merged", dtype).named_parameters())
    assert all(torch.equal(on_disk[name], value) for name, value in merged.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_is_the_one_that_an_operation_writes(family: str, tmp_path: Path) -> None:
    """The same plan, put on the live model and saved, says the same of base, plan and tensors' shapes."""
    base, _ = base_and_tuned(tmp_path, family)
    surgery.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", registry=REGISTRY)
    spec = load_spec(tmp_path / "out" / "spec.yaml", REGISTRY)
    with surgery.operate(base, surgery.plan(spec, base, REGISTRY), registry=REGISTRY) as op:
        op.save(tmp_path / "live")
    ours, theirs = (json.loads((tmp_path / name / "adapter.json").read_text()) for name in ("out", "live"))
    assert ours.pop("tensors_sha256") != theirs.pop("tensors_sha256")
    assert ours == theirs
    tensors = [load_file(tmp_path / name / "adapter.safetensors") for name in ("out", "live")]
    assert {key: (value.shape, value.dtype) for key, value in tensors[0].items()} == {
        key: (value.shape, value.dtype) for key, value in tensors[1].items()
    }


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    base_and_tuned(tmp_path, "GPT2LMHeadModel")
    for name in ("one", "two"):
        surgery.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / name, rank=2, registry=REGISTRY)
        (tmp_path / name).rename(tmp_path / "out")
        (tmp_path / "out").rename(tmp_path / f"kept-{name}")
    files = [
        {path.name: path.read_bytes().replace(b"two", b"one") for path in (tmp_path / f"kept-{name}").iterdir()}
        for name in ("one", "two")
    ]
    assert set(files[0]) == {"adapter.json", "adapter.safetensors", "extraction.json", "spec.yaml"}
    assert files[0] == files[1]


def test_one_rank_for_all_is_the_best_of_that_rank(tmp_path: Path) -> None:
    base, tuned = base_and_tuned(tmp_path, "GPT2LMHeadModel")
    report = surgery.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank=2, registry=REGISTRY)
    assert {one.rank for one in report.covered} == {2}
    for one in report.covered:
        values = torch.linalg.svdvals(canonical(tuned, one.name) - canonical(base, one.name))
        assert one.error == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-4)
        assert one.kept == pytest.approx(1 - one.error**2)
    told = json.loads((tmp_path / "out" / "extraction.json").read_text())
    assert told == json.loads(json.dumps(report.to_dict()))


def test_energy_is_kept_and_one_rank_less_would_not_do(tmp_path: Path) -> None:
    base, tuned = base_and_tuned(tmp_path, "LlamaForCausalLM")
    report = surgery.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", energy=0.8, registry=REGISTRY)
    for one in report.covered:
        squares = torch.linalg.svdvals(canonical(tuned, one.name) - canonical(base, one.name)).square()
        assert one.rank is not None
        assert (
            float(squares[: one.rank].sum() / squares.sum())
            >= 0.8
            > float(squares[: one.rank - 1].sum() / squares.sum())
        )
    assert report.kept == pytest.approx(
        sum(one.kept * one.energy for one in report.covered) / sum(one.energy for one in report.covered)
    )


def test_what_is_not_covered_is_told(tmp_path: Path) -> None:
    base, tuned = base_and_tuned(tmp_path, "BertForMaskedLM")
    with torch.no_grad():
        tuned.bert.encoder.layer[0].attention.self.query.bias.add_(1.0)
        tuned.bert.encoder.layer[1].output.LayerNorm.weight.add_(1.0)
        tuned.bert.embeddings.word_embeddings.weight[5].add_(1.0)
        tuned.cls.predictions.transform.dense.weight.add_(1.0)
    tuned.save_pretrained(tmp_path / "more")
    report = surgery.extract(tmp_path / "base", tmp_path / "more", tmp_path / "out", registry=REGISTRY)
    assert {(one.kind, one.name) for one in report.uncovered} == {
        ("bias", "bert.encoder.layer.0.attention.self.query.bias"),
        ("norm", "bert.encoder.layer.1.output.LayerNorm.weight"),
        ("embedding", "bert.embeddings.word_embeddings.weight"),
        ("head", "cls.predictions.transform.dense.weight"),
    }
    by_name = {one.name: one for one in report.uncovered}
    table = by_name["bert.embeddings.word_embeddings.weight"]
    assert table.energy == pytest.approx(base.config.hidden_size, rel=1e-5)
    covered = sum(one.energy for one in report.covered)
    rest = sum(one.energy for one in report.uncovered)
    assert report.kept_of_all == pytest.approx(report.kept * covered / (covered + rest))
    # Asked for, they are covered: low-rank where they are matrices.
    wide = surgery.extract(tmp_path / "base", tmp_path / "more", tmp_path / "wide", roles=".*", registry=REGISTRY)
    assert {one.kind for one in wide.uncovered} == {"bias", "norm"}
    assert next(one for one in wide.covered if one.role == "embedding.token").rank == 1


def test_only_what_changed_is_in_the_spec(tmp_path: Path) -> None:
    base, tuned = base_and_tuned(tmp_path, "GPT2LMHeadModel")
    with torch.no_grad():  # all but the value part of one layer as it was
        weights = dict(base.named_parameters())
        for name, parameter in tuned.named_parameters():
            kept = parameter.clone()
            parameter.copy_(weights[name])
            if name == "transformer.h.1.attn.c_attn.weight":
                third = kept.shape[1] // 3
                parameter[:, 2 * third :] = kept[:, 2 * third :]
    tuned.save_pretrained(tmp_path / "little")
    report = surgery.extract(tmp_path / "base", tmp_path / "little", tmp_path / "out", registry=REGISTRY)
    assert [one.name for one in report.covered] == ["transformer.h.1.attn.c_attn.weight:attention.value"]
    assert "transformer.h.1.attn.c_attn.weight:attention.query" in report.unchanged
    assert "transformer.h.0.mlp.c_fc.weight" in report.unchanged
    (rule,) = load_spec(tmp_path / "out" / "spec.yaml", REGISTRY).rules
    assert (rule.role, rule.layers) == (r"attention\.value", (1,))


def test_roles_choose(tmp_path: Path) -> None:
    base_and_tuned(tmp_path, "GPT2LMHeadModel")
    report = surgery.extract(
        tmp_path / "base", tmp_path / "tuned", tmp_path / "out", roles=r"attention\.(query|value)", registry=REGISTRY
    )
    assert {one.role for one in report.covered} == {"attention.query", "attention.value"}
    assert {one.role for one in report.uncovered} == {"attention.key", "attention.output", "mlp.up", "mlp.down"}
    with pytest.raises(errors.PlanError, match="matches no site"):
        surgery.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "o", roles="nothing", registry=REGISTRY)


RULES = [
    {"role": r"attention\.(query|value)", "adapter": "lora", "rank": 2, "alpha": 8},
    {"role": r"mlp\..*", "adapter": "full"},
    {"role": r"norm\..*", "adapter": "bias-only"},
]


def test_spec_chooses_adapters_and_ranks(tmp_path: Path) -> None:
    base, tuned = base_and_tuned(tmp_path, "GPT2LMHeadModel")
    with torch.no_grad():
        for block in tuned.transformer.h:
            block.ln_1.bias.add_(0.5)
            block.mlp.c_fc.bias.add_(0.5)
    tuned.save_pretrained(tmp_path / "more")
    spec = surgery.Spec(name="mine", seed=3, rules=RULES)
    report = surgery.extract(tmp_path / "base", tmp_path / "more", tmp_path / "out", spec=spec, registry=REGISTRY)
    assert {one.role: one.rank for one in report.covered} == {
        "attention.query": 2, "attention.value": 2, "mlp.up": None, "mlp.down": None, "norm.attention.pre": None,
    }  # fmt: skip
    assert all(one.error == 0 and one.kept == 1 for one in report.covered if one.rank is None)
    assert {one.role for one in report.uncovered} == {"attention.key", "attention.output"}
    op = surgery.load_adapter(_fresh(tmp_path / "base"), tmp_path / "out", registry=REGISTRY)
    lora = next(edit for edit in op.plan("default").edits if edit.adapter == "lora")
    assert (lora.options.alpha, op.plan("default").spec.seed) == (8, 3)
    op.merge()
    merged = op.finalize()
    for name in ("mlp.c_fc.weight", "mlp.c_fc.bias", "ln_1.bias", "mlp.c_proj.weight"):
        assert torch.equal(
            merged.get_parameter(f"transformer.h.1.{name}"), tuned.get_parameter(f"transformer.h.1.{name}")
        )
    one = next(one for one in report.covered if one.role == "attention.query")
    delta = canonical(tuned, one.name) - canonical(base, one.name)
    lost = canonical(merged, one.name) - canonical(tuned, one.name)
    assert float(lost.norm()) == pytest.approx(one.error * float(delta.norm()), rel=1e-4)


def test_adapters_that_cannot_hold_it_are_refused(tmp_path: Path) -> None:
    base_and_tuned(tmp_path, "MixtralForCausalLM")
    for rule, what in (
        ({"role": r"attention\.key", "adapter": "ia3"}, "'ia3' cannot hold what changed"),
        ({"role": r"moe\.experts\..*", "adapter": "lora", "rank": 2, "experts": "shared"}, "one pair of factors"),
    ):
        spec = surgery.Spec(name="x", rules=[rule])
        with pytest.raises(errors.PlanError, match=what):
            surgery.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", spec=spec, registry=REGISTRY)
    assert not (tmp_path / "out").exists()


def test_files_of_a_base_model_make_an_adapter_of_the_whole(tmp_path: Path) -> None:
    """The hub's GPT-2 has no `transformer.` in its files, and its configuration names the class with a head."""
    base, _ = base_and_tuned(tmp_path, "GPT2LMHeadModel")
    folder = tmp_path / "bare"
    shutil.copytree(tmp_path / "base", folder)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    held = {name.removeprefix("transformer."): value.detach() for name, value in base.named_parameters()}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    report = surgery.extract(folder, tmp_path / "tuned", tmp_path / "out", registry=REGISTRY)
    assert report.covered[0].name.startswith("transformer.h.0.")
    op = surgery.load_adapter(_fresh(folder), tmp_path / "out", registry=REGISTRY)
    op.undo()
    surgery.merge_checkpoint(folder, tmp_path / "out", tmp_path / "merged", registry=REGISTRY)


def test_dtype_is_that_of_the_files_whatever_the_configuration_says(tmp_path: Path) -> None:
    base_and_tuned(tmp_path, "GPT2LMHeadModel", torch.bfloat16)
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "dtype"}))
    surgery.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", registry=REGISTRY)
    surgery.load_adapter(_fresh(tmp_path / "base", torch.bfloat16), tmp_path / "out", registry=REGISTRY).undo()


def test_new_head_is_told_and_does_not_hinder(tmp_path: Path) -> None:
    base_and_tuned(tmp_path, "BertForMaskedLM")
    classifier, _ = build("BertForSequenceClassification", seed=1)
    classifier.save_pretrained(tmp_path / "classifier")
    report = surgery.extract(tmp_path / "base", tmp_path / "classifier", tmp_path / "out", rank=1, registry=REGISTRY)
    assert set(report.only_tuned) >= {"classifier.weight", "classifier.bias"}
    assert any(name.startswith("cls.") for name in report.only_base)


def test_nothing_of_nothing(tmp_path: Path) -> None:
    base, _ = base_and_tuned(tmp_path, "GPT2LMHeadModel")
    with pytest.raises(errors.CheckpointError, match="there is no difference"):
        surgery.extract(tmp_path / "base", tmp_path / "base", tmp_path / "out", registry=REGISTRY)
    with torch.no_grad():
        base.transformer.h[0].ln_1.bias.add_(1.0)
    base.save_pretrained(tmp_path / "biased")
    with pytest.raises(errors.CheckpointError, match=r"nothing that was asked for differs; what does \(1\): norm"):
        surgery.extract(tmp_path / "base", tmp_path / "biased", tmp_path / "out", registry=REGISTRY)
    assert not (tmp_path / "out").exists()


def test_other_models_are_refused(tmp_path: Path) -> None:
    base_and_tuned(tmp_path, "GPT2LMHeadModel")
    for name, family, config, what in (
        ("bert", "BertForMaskedLM", {}, "two architectures: 'gpt2' and 'bert'"),
        ("deep", "GPT2LMHeadModel", {"n_layer": 1}, "it has no 'transformer.h.1"),
        ("wide", "GPT2LMHeadModel", {"n_inner": 24}, r"mlp.c_fc.weight is \[\d+, 24\] here"),
    ):
        build(family, **config)[0].save_pretrained(tmp_path / name)
        with pytest.raises(errors.CheckpointError, match=what):
            surgery.extract(tmp_path / "base", tmp_path / name, tmp_path / "out", registry=REGISTRY)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["base", "tuned"])
def test_not_finite_is_refused(which: str, value: float, tmp_path: Path) -> None:
    models = dict(zip(("base", "tuned"), base_and_tuned(tmp_path, "GPT2LMHeadModel"), strict=True))
    with torch.no_grad():
        models[which].transformer.h[1].mlp.c_fc.weight[0, 0] = value
    shutil.rmtree(tmp_path / which)
    models[which].save_pretrained(tmp_path / which)
    said = {"base": "the base", "tuned": "the tuned weight"}[which]
    with pytest.raises(errors.StateError, match=f"{said} holds NaN or inf") as raised:
        surgery.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", registry=REGISTRY)
    assert raised.value.where == "transformer.h.1.mlp.c_fc.weight"
    assert not (tmp_path / "out").exists()


def test_settings_that_mean_nothing(tmp_path: Path) -> None:
    base_and_tuned(tmp_path, "GPT2LMHeadModel")
    spec = surgery.Spec(name="x", rules=RULES)
    for settings, what in (
        ({"energy": 0.9, "rank": 2}, "energy and rank"),
        ({"roles": ".*", "spec": spec}, "roles and a spec"),
        ({"energy": 0.0}, "the share of energy is 0"),
        ({"energy": 1.1}, "the share of energy is 1.1"),
        ({"energy": math.nan}, "the share of energy is nan"),
        ({"rank": 0}, "the rank is 0"),
        ({"roles": "("}, "not a usable regular expression"),
    ):
        with pytest.raises(errors.SpecError, match=what):
            surgery.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", registry=REGISTRY, **settings)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(errors.CheckpointError, match="exists and is not empty"):
        surgery.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", registry=REGISTRY)
