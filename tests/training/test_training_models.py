"""Models: resolved, loaded by stock classes, and honest about what the checkpoint did not hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.errors import CheckpointError
from surgery.registry import ModelSource, Registry, hookimpl, load_registry
from surgery.training.models import load_model, resolve
from surgery.training.seeds import generator

CLASSIFIER = "AutoModelForSequenceClassification"


def refused(ref: str, registry: Registry, auto_class: str = CLASSIFIER) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_model(ref, auto_class, registry, seed=0, labels=("a", "b"))
    return caught.value


def test_new_parameters_are_drawn_by_name(bert: Path, registry: Registry) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    loaded = load_model(str(bert), CLASSIFIER, registry, seed=3, labels=("a", "b", "c"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert loaded.new_parameters == ("classifier.weight", "classifier.bias")
    expected = torch.randn(3, 16, generator=generator(3, "head", "classifier.weight")) * 0.02
    assert torch.equal(loaded.model.classifier.weight, expected)
    assert not loaded.model.classifier.bias.any()
    assert loaded.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert not loaded.model.training


def test_the_base_is_the_checkpoints(gpt2: Path, registry: Registry) -> None:
    from safetensors.torch import load_file

    loaded = load_model(str(gpt2), "AutoModelForCausalLM", registry, seed=0)
    stored = load_file(gpt2 / "model.safetensors")
    state = loaded.model.state_dict()
    assert loaded.new_parameters == ()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())


def test_a_tokenizer_without_padding_gets_one(gpt2: Path, registry: Registry) -> None:
    loaded = load_model(str(gpt2), "AutoModelForCausalLM", registry, seed=0)
    assert loaded.tokenizer.pad_token == "<end>"
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id == 0
    assert loaded.notes == ("the tokenizer has no padding token: '<end>' takes its place, without a loss",)


def test_a_head_of_another_size_is_new(bert: Path, registry: Registry, tmp_path: Path) -> None:
    first = load_model(str(bert), CLASSIFIER, registry, seed=0, labels=("a", "b"))
    first.model.save_pretrained(tmp_path / "two")
    first.tokenizer.save_pretrained(tmp_path / "two")
    same = load_model(str(tmp_path / "two"), CLASSIFIER, registry, seed=9, labels=("a", "b"))
    assert same.new_parameters == ()
    assert torch.equal(same.model.classifier.weight, first.model.classifier.weight)
    other = load_model(str(tmp_path / "two"), CLASSIFIER, registry, seed=9, labels=("a", "b", "c"))
    assert other.new_parameters == ("classifier.weight", "classifier.bias")


def test_an_adapter_of_a_new_head_is_merged_into_a_base_that_was_given_the_head(
    bert: Path, registry: Registry, tmp_path: Path
) -> None:
    """What the error says to type."""
    from small import sentences
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from surgery import Spec, merge_checkpoint, train

    data = {"train": sentences(16), "validation": sentences(8, 16)}
    spec = Spec(
        name="head",
        model=str(bert),
        task={"kind": "text-classification"},
        training={"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
        rules=[{"role": r"head\..*", "adapter": "full"}],
    )
    train(spec, tmp_path / "run", registry=registry, data=data)
    with pytest.raises(CheckpointError, match="the base lacks 'classifier") as caught:
        merge_checkpoint(bert, [tmp_path / "run" / "adapter"], tmp_path / "merged", registry=registry)
    assert "from_pretrained(BASE, num_labels=N).save_pretrained(DIR), and train on DIR" in caught.value.hint
    AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2).save_pretrained(tmp_path / "with-head")
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "with-head")
    train(spec, tmp_path / "again", registry=registry, data=data, model=str(tmp_path / "with-head"))
    merge_checkpoint(tmp_path / "with-head", [tmp_path / "again" / "adapter"], tmp_path / "merged", registry=registry)
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_weights_of_another_shape_are_refused(bert: Path, registry: Registry, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "odd")
    config = json.loads((bert / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    error = refused(str(tmp_path / "odd"), registry)
    assert "has another shape in the checkpoint" in error.what


def test_weights_of_another_model_are_refused(bert: Path, gpt2: Path, registry: Registry, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "odd")
    shutil.copy(gpt2 / "model.safetensors", tmp_path / "odd" / "model.safetensors")
    error = refused(str(tmp_path / "odd"), registry)
    assert error.what.startswith("the checkpoint lacks most of the model")


def test_pickled_weights_are_refused(bert: Path, registry: Registry, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"anything")
    error = refused(str(tmp_path / "old"), registry)
    assert error.what == "the weights are pickled (pytorch_model.bin), not safetensors"
    assert "save_pretrained(NEW_FOLDER)" in error.hint
    (tmp_path / "old" / "pytorch_model.bin").unlink()
    assert refused(str(tmp_path / "old"), registry).what == "the folder holds no weights"


def test_damaged_weights(bert: Path, registry: Registry, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "cut")
    data = (bert / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert refused(str(tmp_path / "cut"), registry).what.startswith("the model cannot be loaded")


def test_an_unknown_model_names_its_neighbours(bert: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = refused(str(bert.parent / "tiny-bret"), registry)
    assert error.what == f"unknown model '{bert.parent}/tiny-bret'"
    assert f"did you mean '{bert}'?" in error.hint
    assert "unset HF_HUB_OFFLINE" in error.hint
    error = refused("demo:nothing", registry)
    assert "installed sources of models: transformers" in error.hint


def test_a_folder_without_a_tokenizer(bert: Path, registry: Registry, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    assert refused(str(tmp_path / "bare"), registry).what.startswith("the tokenizer cannot be loaded")


def test_remote_code_is_never_run(bert: Path, registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "never_heard_of", "auto_map": {"AutoConfig": "code.Config", CLASSIFIER: "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\n")
    assert refused(str(folder), registry).what.startswith("the model cannot be loaded")
    assert not (tmp_path / "ran").exists()


def test_dtype(bert: Path, registry: Registry) -> None:
    from surgery.spec import ModelRef

    loaded = load_model(ModelRef(ref=str(bert), dtype="bfloat16"), CLASSIFIER, registry, seed=0, labels=("a", "b"))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


class Bundled(ModelSource):
    name = "bundled"
    summary = "for tests"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resolve(self, ref: str) -> Path | None:
        return self.folder if ref == "tiny" else None


def test_a_bundled_folder_wins_over_a_hub_name(bert: Path) -> None:
    import surgery_transformers

    class Plugin:
        @hookimpl
        def surgery_models(self) -> list[ModelSource]:
            return [Bundled(bert)]

    registry = load_registry(extra=[surgery_transformers, Plugin()], entry_points=False)
    assert resolve("tiny", registry) == bert
    assert resolve("bert-base-uncased", registry) == "bert-base-uncased"


@pytest.mark.parametrize(
    ("auto_class", "name"),
    [(None, "BertModel"), (CLASSIFIER, "BertForSequenceClassification"), ("AutoModelForMaskedLM", "BertForMaskedLM")],
)
def test_skeletons_have_no_weights(bert: Path, registry: Registry, auto_class: str | None, name: str) -> None:
    from transformers import AutoConfig

    source = registry.models["transformers"].value
    for subject in (bert, str(bert), str(bert / "config.json"), AutoConfig.from_pretrained(bert)):
        model: Any = source.skeleton(subject, auto_class)
        assert type(model).__name__ == name
        assert all(parameter.is_meta for parameter in model.parameters())


def test_a_skeleton_keeps_ties(gpt2: Path, registry: Registry) -> None:
    model: Any = registry.models["transformers"].value.skeleton(gpt2)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.lm_head.weight is model.transformer.wte.weight


def test_skeletons_that_cannot_be(bert: Path, registry: Registry, tmp_path: Path) -> None:
    source = registry.models["transformers"].value
    with pytest.raises(CheckpointError, match="no configuration can be read"):
        source.skeleton(tmp_path)
    with pytest.raises(CheckpointError, match="transformers has no 'AutoModelForPoetry'"):
        source.skeleton(bert, "AutoModelForPoetry")
    with pytest.raises(CheckpointError, match="cannot be built for model type 'bert'"):
        source.skeleton(bert, "AutoModelForImageClassification")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": "x"},
        {"num_hidden_layers": 2.5},
        {"num_hidden_layers": None},
        {"num_hidden_layers": 10**9},
        {"text_config": {"num_layers": 10_001}},
        {"hidden_size": 0},
        {"hidden_size": 10**30},
        {"num_attention_heads": 0},
        {"vocab_size": -5},
        {"num_labels": 10**8},
        {"id2label": 5},
        {"architectures": ["GPT2Model"]},
        {"hidden_act": "evil"},
        {"dtype": "evil"},
        {"quantization_config": 5},
        {"model_type": [1]},
        {"attn_implementation": "flash_attention_2"},
    ],
    ids=str,
)
def test_bad_values_of_a_configuration(
    bert: Path, registry: Registry, tmp_path: Path, changes: dict[str, object]
) -> None:
    config = {**json.loads((bert / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        registry.models["transformers"].value.skeleton(tmp_path)
    assert caught.value.where == str(tmp_path)
    assert "\n" not in caught.value.what


@pytest.mark.parametrize(
    "text", ["null", "NaN", "[" * 100_000, '{"model_type": "bert", "x": ' + "[" * 900 + "]" * 900 + "}"]
)
def test_a_configuration_that_is_no_object(registry: Registry, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        registry.models["transformers"].value.skeleton(tmp_path)


def test_architectures_that_name_no_class(bert: Path, registry: Registry, tmp_path: Path) -> None:
    config = {**json.loads((bert / "config.json").read_text()), "architectures": [5]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model: Any = registry.models["transformers"].value.skeleton(tmp_path)
    assert type(model).__name__ == "BertModel"


@pytest.mark.parametrize("name", ["PreTrainedModel", "BertPreTrainedModel"])
def test_architectures_that_name_what_is_no_model(bert: Path, registry: Registry, tmp_path: Path, name: str) -> None:
    """A plan of nothing would be a plan of 0 parameters."""
    config = {**json.loads((bert / "config.json").read_text()), "architectures": [name]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{name}, which `architectures` names, is no model") as caught:
        registry.models["transformers"].value.skeleton(tmp_path)
    assert caught.value.where == str(tmp_path)
    assert 'say "architectures": ["BertModel"]' in caught.value.hint
