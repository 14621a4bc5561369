"""The recipes of the LoRA paper: what its tables say, on models of the published sizes, without a weight."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_support import ROOT, Run

import surgery
from surgery.registry import Registry, load_registry
from surgery.spec import Rule, Spec, load_document
from surgery.training.fit import _warmup, steps_of
from surgery.training.groups import parameter_groups

FOLDER = ROOT / "specs" / "recipes" / "lora-paper"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
ROBERTA = [name for name in FILES if name.startswith("roberta-")]
GPT2 = [name for name in FILES if name.startswith("gpt2-")]

TABLE_9 = {  # batch size, epochs, learning rate, tokens
    "base": {
        "mnli": (16, 30, 5e-4, 512), "sst2": (16, 60, 5e-4, 512), "mrpc": (16, 30, 4e-4, 512), "cola": (32, 80, 4e-4, 512),
        "qnli": (32, 25, 4e-4, 512), "qqp": (16, 25, 5e-4, 512), "rte": (32, 80, 5e-4, 512), "stsb": (16, 40, 4e-4, 512),
    },
    "large": {
        "mnli": (4, 10, 3e-4, 128), "sst2": (4, 10, 4e-4, 128), "mrpc": (4, 20, 3e-4, 512), "cola": (4, 20, 2e-4, 128),
        "qnli": (4, 10, 2e-4, 512), "qqp": (4, 20, 3e-4, 512), "rte": (8, 20, 4e-4, 512), "stsb": (8, 30, 2e-4, 512),
    },
}  # fmt: skip
TABLE_11 = {  # weight decay, dropout, label smoothing, length penalty
    "e2e": (0.01, 0.1, 0.1, 0.9), "webnlg": (0.01, 0.1, 0.1, 0.8), "dart": (0.0, 0.0, 0.0, 0.8),
}  # fmt: skip
ADAPTER = {"base": 294_912, "large": 786_432}
HEAD = {"base": 592_130, "large": 1_051_650}  # of two labels
FEWER = {"base": 769, "large": 1025}  # a head's output, which a regression has one less of
GPT2_COUNTS = {"medium": 393_216, "large": 737_280}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


def spec_of(name: str, registry: Registry) -> Spec:
    task = load_document(FILES[name]).data["task"]
    known = registry.task_options(task["kind"]).model_fields if task["kind"] in registry.task_names() else None
    if known is None or not set(task) - {"kind"} <= set(known):
        pytest.skip(f"no installed task is {task}")
    return surgery.load_spec(FILES[name], registry)


def config_of(name: str, labels: int = 2) -> Any:
    """Return the published configuration of the model that a recipe names."""
    from transformers import GPT2Config, RobertaConfig

    family, size, _ = name.split("-")
    width, layers = {"base": (768, 12), "medium": (1024, 24)}.get(
        size, (1024, 24) if family == "roberta" else (1280, 36)
    )
    if family == "gpt2":
        return GPT2Config(n_embd=width, n_layer=layers, n_head=width // 64, architectures=["GPT2LMHeadModel"])
    return RobertaConfig(
        vocab_size=50_265, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=4 * width, max_position_embeddings=514, type_vocab_size=1, num_labels=labels,
        architectures=["RobertaForMaskedLM"],
    )  # fmt: skip


def planned(name: str, registry: Registry) -> surgery.Plan:
    spec = spec_of(name, registry)
    assert spec.task is not None
    auto_class = registry.task(spec.task.kind).auto_class
    return surgery.plan(spec, config_of(name), registry, auto_class=auto_class)


def test_the_files_are_those_of_the_tables() -> None:
    loader = importlib.util.spec_from_file_location("docs_recipes", ROOT / "docs" / "recipes.py")
    assert loader is not None
    assert loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    sys.modules[loader.name] = module
    loader.loader.exec_module(module)
    texts: dict[str, str] = module.recipes()
    if os.environ.get("SURGERY_REGENERATE_GOLDEN"):
        module.main()
    assert {name: path.read_text("utf-8") for name, path in FILES.items()} == texts, "run python docs/recipes.py"


def test_every_run_of_the_paper_is_there() -> None:
    glue = {f"roberta-{size}-{task}" for size, tasks in TABLE_9.items() for task in tasks}
    assert set(FILES) == glue | {f"gpt2-{size}-{task}" for size in GPT2_COUNTS for task in TABLE_11}


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_valid_and_planned_by_the_command_line(
    name: str, registry: Registry, invoke: Run, tmp_path: Path
) -> None:
    spec_of(name, registry)
    assert invoke("check", FILES[name]).code == 0
    assert load_document(FILES[name]).data["name"] == name
    config_of(name).save_pretrained(tmp_path)
    found = json.loads(invoke("plan", FILES[name], tmp_path, "--json").out)["trainable"]
    _, size, _ = name.split("-")
    wanted = (ADAPTER[size], HEAD[size]) if name in ROBERTA else (GPT2_COUNTS[size], 0)
    if name.endswith("stsb"):
        assert found["adapter"] == wanted[0]
        assert found["head"] in (wanted[1], wanted[1] - FEWER[size])
    else:
        assert (found["adapter"], found["head"]) == wanted


@pytest.mark.parametrize("name", ROBERTA)
def test_roberta_says_what_table_9_says(name: str, registry: Registry) -> None:
    spec = spec_of(name, registry)
    _, size, task = name.split("-")
    training = spec.training
    assert training is not None
    assert spec.task is not None
    found = (training.batch_size, training.epochs, training.learning_rate, dict(spec.task.options)["max_length"])
    assert found == TABLE_9[size][task]
    assert (training.warmup, training.warmup_steps, training.schedule) == (0.06, None, "linear")
    assert (training.weight_decay, training.max_grad_norm, training.base_dropout) == (0.1, 1.0, True)
    assert (training.beta1, training.beta2, training.epsilon, training.label_smoothing) == (0.9, 0.999, 1e-8, 0.0)
    assert not training.groups
    metric = registry.task(spec.task.kind).options.model_validate(dict(spec.task.options))
    wanted = {"cola": "matthews", "stsb": "pearson"}.get(task, "accuracy")
    assert getattr(metric, "metric", "accuracy") == wanted


@pytest.mark.parametrize("name", ["roberta-base-sst2", "roberta-large-mrpc"])
def test_roberta_adapts_query_and_value_and_trains_its_head(name: str, registry: Registry) -> None:
    _, size, _ = name.split("-")
    plan = planned(name, registry)
    lora = [edit for edit in plan.edits if edit.adapter == "lora"]
    layers = 12 if size == "base" else 24
    assert [edit.site.path for edit in lora] == [
        f"roberta.encoder.layer.{layer}.attention.self.{part}" for layer in range(layers) for part in ("query", "value")
    ]
    assert {edit.options.scale for edit in lora} == {1.0 if size == "base" else 2.0}
    assert {(edit.options.rank, edit.options.dropout, edit.options.init) for edit in lora} == {(8, 0.0, "kaiming")}
    assert [edit.site.name for edit in plan.edits if edit.adapter == "full"] == [
        "classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias",
    ]  # fmt: skip
    assert (plan.adapter_parameters, plan.head_parameters) == (ADAPTER[size], HEAD[size])


@pytest.mark.parametrize("name", GPT2)
def test_gpt2_says_what_table_11_says(name: str, registry: Registry) -> None:
    spec = spec_of(name, registry)
    _, _, data = name.split("-")
    training = spec.training
    assert training is not None
    assert spec.task is not None
    task = registry.task(spec.task.kind).options.model_validate(dict(spec.task.options))
    (rule,) = spec.rules
    found = (training.weight_decay, dict(rule.options)["dropout"], training.label_smoothing, task.length_penalty)
    assert found == TABLE_11[data]
    assert (training.epochs, training.batch_size, training.gradient_accumulation) == (5, 8, 1)
    assert (training.learning_rate, training.schedule, training.max_grad_norm) == (2e-4, "linear", None)
    assert (training.beta1, training.beta2, training.epsilon, training.base_dropout) == (0.9, 0.999, 1e-6, False)
    assert (task.beams, task.no_repeat_ngram, task.max_new_tokens, task.stop) == (10, 4, 64, ("\n\n",))
    assert (task.max_length, task.truncate, task.separator, task.lead) == (512, True, None, " ")


@pytest.mark.parametrize("name", ["gpt2-medium-e2e", "gpt2-large-dart"])
def test_gpt2_adapts_two_thirds_of_the_fused_weight(name: str, registry: Registry) -> None:
    """Query is the first third of c_attn's outputs, value the last one, and nothing touches the key between."""
    config, plan = config_of(name), planned(name, registry)
    width = config.n_embd
    assert [edit.site.path for edit in plan.edits] == [
        f"transformer.h.{layer}.attn.c_attn" for layer in range(config.n_layer) for _ in range(2)
    ]
    for edit in plan.edits:
        assert edit.site.slice is not None
        first = {"attention.query": 0, "attention.value": 2 * width}[edit.site.role]
        assert list(edit.site.slice.indices()) == list(range(first, first + width))
        assert (edit.site.fan_in, edit.site.fan_out) == (width, width)
        assert (edit.options.scale, edit.options.rank, edit.parameters) == (8.0, 4, 2 * 4 * width)
    assert plan.parameters == GPT2_COUNTS[name.split("-")[1]]


def test_smaller_models_of_the_recipe_have_the_papers_counts(registry: Registry) -> None:
    from transformers import GPT2Config

    rule = spec_of("gpt2-medium-e2e", registry).rules[0]
    small = Spec(
        name="small", rules=[Rule(**{**rule.model_dump(exclude={"options"}), **dict(rule.options), "expect": 24})]
    )
    assert surgery.plan(small, GPT2Config(architectures=["GPT2LMHeadModel"]), registry).parameters == 147_456


def test_the_change_of_the_key_is_exactly_zero(registry: Registry) -> None:
    """On a model of the same kind with weights: merged, the middle third of c_attn keeps its very bits."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=16))
    rule = spec_of("gpt2-medium-e2e", registry).rules[0]
    tiny = Spec(
        name="tiny", rules=[Rule(**{**rule.model_dump(exclude={"options"}), **dict(rule.options), "expect": 4})]
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with surgery.operate(model, surgery.plan(tiny, model, registry), registry=registry) as op:
        with torch.no_grad():
            for parameter in op.trainable().values():
                parameter.add_(torch.randn_like(parameter))
        op.merge()
        for name, tensor in before.items():
            changed = (model.state_dict()[name] != tensor).any(dim=0)
            if name.endswith("c_attn.weight"):  # (inputs, outputs): query, key, value
                assert changed.tolist() == [True] * 16 + [False] * 16 + [True] * 16
            else:
                assert not changed.any()


ROWS = {"sst2": 67_349, "mnli": 392_702, "rte": 2_490, "e2e": 42_061}


@pytest.mark.parametrize(
    ("name", "steps", "warm_up"),
    [
        ("roberta-base-sst2", 252_559, 15_154),
        ("roberta-large-mnli", 981_755, 58_906),
        ("roberta-base-rte", 6_225, 374),
        ("gpt2-medium-e2e", 26_289, 500),
        ("gpt2-large-e2e", 26_289, 500),
    ],
)
def test_schedule(name: str, steps: int, warm_up: int, registry: Registry) -> None:
    """Steps of the whole run, as the paper's own checkpoint model.26289.pt has them, and of its warm-up."""
    training = spec_of(name, registry).training
    assert training is not None
    session: Any = SimpleNamespace(examples={"train": range(ROWS[name.rsplit("-", maxsplit=1)[-1]])})
    assert steps_of(session, training) == steps
    assert _warmup(training, steps) == warm_up
    assert training.evaluate_every == math.ceil(ROWS[name.rsplit("-", maxsplit=1)[-1]] / training.batch_size)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("roberta-base-sst2", {"rest": 0.1, "rest, without decay": 0.0}), ("gpt2-medium-e2e", {"rest": 0.01})],
)
def test_who_decays(name: str, wanted: dict[str, float], registry: Registry) -> None:
    """RoBERTa: all matrices and no bias, as in the Trainer. GPT-2: every trainable tensor, all of which are matrices."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, RobertaConfig

    spec = spec_of(name, registry)
    if name in GPT2:
        model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32))
    else:
        config = RobertaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=32
        )
        model = AutoModelForSequenceClassification.from_config(config)
    plain = [Rule(**{**rule.model_dump(exclude={"options", "expect"}), **dict(rule.options)}) for rule in spec.rules]
    training = spec.training
    assert training is not None
    with surgery.operate(model, surgery.plan(Spec(name="t", rules=plain), model, registry), registry=registry) as op:
        groups = parameter_groups(op.trainable(), op.trainable_sites(), training)
        assert {group.name: group.weight_decay for group in groups} == wanted
        assert {group.learning_rate for group in groups} == {training.learning_rate}
        still = [parameter for group in groups if group.weight_decay == 0 for parameter in group.parameters]
        assert all(parameter.ndim == 1 for parameter in still)
        assert len(still) == (0 if name in GPT2 else 2)


def test_the_e2e_spec_as_shipped_writes_on_real_data(invoke: Run, tmp_path: Path, real_data: Path) -> None:
    """Shortened to a few steps of the included GPT-2, with the columns of the challenge's own files."""
    text = (ROOT / "specs" / "generation-e2e-gpt2.yaml").read_text("utf-8")
    for old, new in {
        "epochs: 5": "steps: 6",
        "warmup_steps: 500": "warmup_steps: 2",
        "expect: 24": "expect: 10",
        "max_length: 512": "max_length: 384",
        "beams: 10": "beams: 2",
        "max_new_tokens: 64": "max_new_tokens: 12",
        "generate: 100 ": "generate: 4 ",
        "{source: meaning_representation, target: human_reference}": "{source: mr, target: ref}",
        "  name: tuetschek/e2e_nlg\n  test: test\n": "  limit: {train: 64, validation: 16, test: 16}\n",
    }.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "e2e.yaml"
    path.write_text(text, "utf-8")
    folder = real_data / "e2e_nlg"
    files = ",".join(f"{split}={folder / name}.jsonl" for split, name in FILES_OF_E2E.items())
    result = invoke("train", path, "--out", tmp_path / "run", "--data", files, "--model", "demo:gpt2", "--json")
    assert result.code == 0, result.err
    metrics = json.loads(result.out)["metrics"]
    assert set(metrics["test"]) == {"bleu", "nist", "chrf", "rouge_l", "loss", "perplexity"}
    lines = (tmp_path / "run" / "generated.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["split"] for line in lines] == ["validation"] * 4 + ["test"] * 4


FILES_OF_E2E = {"train": "train", "validation": "valid", "test": "test"}
