"""Every YAML file in specs/: valid, understood by editors, and planned on a model of its family with the known counts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_support import ROOT, Run
from jsonschema import Draft202012Validator

import surgery
from surgery.registry import Registry, load_registry
from surgery.spec import load_document

SPECS = ROOT / "specs"
FILES = {path.stem: path for path in sorted(SPECS.glob("*.yaml"))}
DOCUMENTS = {name: load_document(path) for name, path in FILES.items()}
ONE_MODEL = {name: path for name, path in FILES.items() if "arms" not in DOCUMENTS[name].data}
FIRST_LINE = "# yaml-language-server: $schema=spec.schema.json"

HEAD = 592_130  # of BertForSequenceClassification and RobertaForSequenceClassification: 768 x 768 + 768 + 768 x 2 + 2
COUNTS = {
    "bert-lora-qv": (294_912, HEAD),
    "bert-lora-all": (1_327_104, HEAD),
    "bert-bias-only": (102_144, HEAD),
    "bert-full": (109_483_778 - HEAD, HEAD),
    "gpt2-lora-qv": (147_456, 0),
    "generation-e2e-gpt2": (147_456, 0),
    "gpt2-bias-only": (102_144, 0),
    "gpt2-ia3": (55_296, 0),
    "gpt2-full": (124_439_808, 0),
    "llama-lora-all": (12_615_680, 0),
    "sentiment-sst2": (294_912, HEAD),
    "chinese-sentiment": (294_912, HEAD),
    "text-classification-ag-news": (294_912, HEAD),
    "text-classification-cola": (294_912, HEAD),
    "question-answering-squad": (294_912, 2 * 768 + 2),
}
"""Trainable numbers of the adapters and of the head, on the model that the spec names."""


def config_of(ref: str) -> Any:
    """Return the configuration of the models that specs name, as their authors published them."""
    from transformers import BertConfig, GPT2Config, LlamaConfig

    if ref == "gpt2":
        return GPT2Config(architectures=["GPT2LMHeadModel"])
    if ref.startswith("TinyLlama/"):
        return LlamaConfig(
            hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
            num_key_value_heads=4, vocab_size=32000, architectures=["LlamaForCausalLM"],
        )  # fmt: skip
    vocabulary = {"bert-base-uncased": 30_522, "hfl/chinese-roberta-wwm-ext": 21_128}[ref]
    return BertConfig(vocab_size=vocabulary, architectures=["BertForMaskedLM"])


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(scope="module")
def schema() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((SPECS / "spec.schema.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize(("name", "command"), [("spec", ["schema"]), ("study", ["schema", "--study"])])
def test_the_schema_is_current(name: str, command: list[str], invoke: Run) -> None:
    path = SPECS / f"{name}.schema.json"
    text = invoke(*command).out
    if os.environ.get("SURGERY_REGENERATE_GOLDEN"):
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8"), f"surgery {' '.join(command)} > specs/{name}.schema.json"


def test_all_files_are_valid(invoke: Run) -> None:
    result = invoke("check", *FILES.values())
    assert result.code == 0
    assert len(result.out.splitlines()) == len(FILES)


@pytest.mark.parametrize("name", ONE_MODEL)
def test_editors_understand_the_file(name: str, schema: Mapping[str, Any]) -> None:
    assert FILES[name].read_text("utf-8").splitlines()[0] == FIRST_LINE
    assert not list(Draft202012Validator(schema).iter_errors(DOCUMENTS[name].data))


@pytest.mark.parametrize("name", ONE_MODEL)
def test_the_file_is_named_like_the_spec(name: str) -> None:
    assert DOCUMENTS[name].data["name"] == name


def test_every_spec_has_golden_counts() -> None:
    assert set(COUNTS) == set(ONE_MODEL)


@pytest.mark.parametrize("name", COUNTS)
def test_plan_on_the_models_skeleton(name: str, registry: Registry) -> None:
    spec = surgery.load_spec(FILES[name], registry)
    assert spec.model is not None
    assert spec.task is not None
    assert any(rule.expect for rule in spec.rules), "the model is fixed: say how many sites"
    auto_class = registry.task(spec.task.kind).auto_class
    plan = surgery.plan(spec, config_of(spec.model.ref), registry, auto_class=auto_class)
    adapter, head = COUNTS[name]
    if name == "chinese-sentiment":
        assert plan.model_parameters == 109_483_778 - (30_522 - 21_128) * 768
    assert (plan.adapter_parameters, plan.head_parameters) == (adapter, head)


@pytest.mark.parametrize("name", COUNTS)
def test_plan_of_the_command_line(name: str, invoke: Run, tmp_path: Path) -> None:
    config_of(
        DOCUMENTS[name].data["model"]["ref"] if name == "llama-lora-all" else DOCUMENTS[name].data["model"]
    ).save_pretrained(tmp_path)
    result = invoke("plan", FILES[name], tmp_path, "--json")
    found = json.loads(result.out)["trainable"]
    assert (found["adapter"], found["head"]) == COUNTS[name]


def rules(*lines: dict[str, Any]) -> surgery.Spec:
    return surgery.Spec(name="golden", rules=lines)


def lora_qv(rank: int) -> surgery.Spec:
    return rules({"role": r"attention\.(query|value)", "adapter": "lora", "rank": rank})


@pytest.mark.parametrize(("width", "layers", "wanted"), [(768, 12, 147_456), (1024, 24, 393_216), (1280, 36, 737_280)])
def test_lora_on_gpt2(width: int, layers: int, wanted: int, registry: Registry) -> None:
    from transformers import GPT2Config

    config = GPT2Config(n_embd=width, n_layer=layers, n_head=width // 64, architectures=["GPT2LMHeadModel"])
    assert surgery.plan(lora_qv(4), config, registry).parameters == wanted


@pytest.mark.parametrize(("width", "layers", "wanted"), [(768, 12, 294_912), (1024, 24, 786_432)])
def test_lora_on_roberta(width: int, layers: int, wanted: int, registry: Registry) -> None:
    plan = surgery.plan(lora_qv(8), roberta(width, layers), registry, auto_class="AutoModelForSequenceClassification")
    assert plan.parameters == wanted


def test_bert_lora_qv_serves_roberta_with_its_head(registry: Registry) -> None:
    spec = surgery.load_spec(FILES["bert-lora-qv"], registry)
    plan = surgery.plan(spec, roberta(768, 12), registry, auto_class="AutoModelForSequenceClassification")
    assert (plan.class_name, plan.adapter_parameters, plan.head_parameters) == (
        "RobertaForSequenceClassification", 294_912, HEAD,
    )  # fmt: skip


def test_bias_only(registry: Registry) -> None:
    from transformers import BertConfig

    spec = rules({"role": ".*", "exclude": {"role": r"head\..*"}, "adapter": "bias-only"})
    plan = surgery.plan(spec, roberta(768, 12), registry, auto_class="AutoModelForSequenceClassification")
    assert plan.parameters == 102_144
    minilm = BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536, num_attention_heads=12)
    assert surgery.plan(spec, minilm, registry).parameters == 25_728


def roberta(width: int, layers: int) -> Any:
    from transformers import RobertaConfig

    return RobertaConfig(
        vocab_size=50_265, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=4 * width, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip


@pytest.mark.parametrize("path", sorted(SPECS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(SPECS)))
def test_what_is_kept_of_a_spec_loads_back(path: Path) -> None:
    """Runs, adapters and cells of studies hold the spec as JSON with all defaults."""
    registry = load_registry()
    if "arms" not in load_document(path).data:
        spec = surgery.load_spec(path, registry)
        assert surgery.Spec.model_validate_json(spec.canonical_json()) == spec
        return
    from surgery.study import StudySpec, load_study

    study = load_study(path, registry)
    assert StudySpec.model_validate_json(study.canonical_json()) == study
