"""One plan whatever it is made from: a live model, its skeleton on the meta device, its file headers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, Family, build

from surgery import Plan, Rule, Spec, load_registry, plan, sites
from surgery.planning import anatomy, inventory, outline, render_outline, render_plan
from surgery.testing import assert_same_state, model_state

REGISTRY = load_registry()
GOLDEN = Path(__file__).parent / "golden"
SPEC = Spec(
    name="everything",
    rules=[
        Rule(role=r"attention\.(query|value)", adapter="lora", rank=2),
        Rule(role=r".*", adapter="bias-only", tied="share", exclude={"role": r"head\..*"}),
        Rule(role=r"head\..*", adapter="full", tied="share"),
    ],
)
WHOLE = Spec(name="whole", rules=[Rule(target=".*", adapter="full", tied="share")])


def spec_for(item: Family) -> Spec:
    """The rules of SPEC that win something: base models have no head, some models no bias, some no attention."""
    model, _ = build(item)
    found = sites(model, REGISTRY)
    kept = [
        rule
        for rule in SPEC.rules
        if any(
            re.fullmatch(rule.role or "", site.role)
            and REGISTRY.adapter(rule.adapter).claims(site)
            and not (rule.exclude and site.role.startswith("head."))
            for site in found
        )
    ]
    return Spec(name="everything", rules=kept)


def told(decided: Plan) -> dict[str, tuple[object, ...]]:
    return {
        edit.site.key: (
            edit.site.role,
            edit.site.layer,
            edit.site.shape,
            edit.adapter,
            edit.parameters,
            edit.dtype,
            edit.site.slice,
        )
        for edit in decided.edits
    }


@pytest.mark.parametrize("item", FAMILIES, ids=str)
def test_three_sources_tell_the_same(item: Family, tmp_path: Path) -> None:
    model, _ = build(item)
    model.save_pretrained(tmp_path, save_original_format=False)  # some types have other names in older files
    live = {
        site.key: (site.role, site.layer, site.shape, site.slice, set(site.tied)) for site in sites(model, REGISTRY)
    }
    for source in (model.config, str(tmp_path / "config.json"), str(tmp_path)):
        auto = None
        if source is model.config:
            source.architectures = [item.cls]
        found = {
            site.key: (site.role, site.layer, site.shape, site.slice, set(site.tied))
            for site in sites(source, REGISTRY, auto_class=auto)
        }
        assert found == live, str(source)
    for spec in (spec_for(item), WHOLE):
        plans = [plan(spec, source, REGISTRY) for source in (model, model.config, str(tmp_path))]
        assert all(told(made) == told(plans[0]) for made in plans)
        assert plans[0].hash == plans[1].hash
        assert [made.origin for made in plans] == ["model", "config", "headers"][: len(plans)]
        assert len({made.model_parameters for made in plans}) == 1
        assert plans[0].model_parameters == sum(parameter.numel() for parameter in model.parameters())
        assert plans[0].parameters == plans[0].adapter_parameters + plans[0].head_parameters


@pytest.mark.parametrize("item", FAMILIES, ids=str)
def test_a_plan_touches_nothing(item: Family) -> None:
    model, _ = build(item)
    before, random = model_state(model), torch.random.get_rng_state()
    decided = plan(spec_for(item), model, REGISTRY)
    str(decided), decided.to_json(), decided.hash
    assert_same_state(before, model_state(model), "by planning")
    assert torch.equal(random, torch.random.get_rng_state())


def test_the_text_is_canonical_json() -> None:
    decided = plan(SPEC, build("BertForSequenceClassification")[0], REGISTRY)
    again = plan(SPEC, build("BertForSequenceClassification")[0], REGISTRY)
    assert decided.to_json() == again.to_json()
    data = json.loads(decided.to_json())
    assert json.dumps(data, sort_keys=True, ensure_ascii=False) == decided.to_json()
    assert json.loads(decided.to_json(indent=2)) == data
    assert data["hash"] == decided.hash
    assert data["trainable"]["total"] == sum(edit["parameters"] for edit in data["edits"]) == decided.parameters
    assert data["bytes"]["optimizer"] == 2 * data["bytes"]["gradients"]


def test_the_hash_tells_what_is_done_and_nothing_else() -> None:
    model = build("BertForSequenceClassification")[0]
    first = plan(SPEC, model, REGISTRY)
    assert plan(SPEC.model_copy(update={"name": "other"}), model, REGISTRY).hash == first.hash
    assert plan(SPEC.model_copy(update={"seed": 1}), model, REGISTRY).hash != first.hash
    assert plan(SPEC.model_copy(update={"rules": SPEC.rules[:2]}), model, REGISTRY).hash != first.hash
    rank = [Rule(role=r"attention\.(query|value)", adapter="lora", rank=3), *SPEC.rules[1:]]
    assert plan(Spec(name="everything", rules=rank), model, REGISTRY).hash != first.hash


HASHES = """
import sys
from surgery import Rule, Spec, plan
for seed in (0, 1):
    rules = [Rule(role=r"attention\\..*", adapter="lora", rank=1), Rule(role=".*", adapter="full", tied="share")]
    made = plan(Spec(name="x", seed=seed, rules=rules), sys.argv[1])
    print(made.hash, hash(made.to_json()) and __import__("hashlib").sha256(made.to_json().encode()).hexdigest())
assert "torch" not in sys.modules
"""


def test_the_hash_does_not_depend_on_hash_seeds(tmp_path: Path) -> None:
    build("GPT2LMHeadModel")[0].save_pretrained(tmp_path)
    texts = set()
    for seed in ("0", "1", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", HASHES, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        texts.add(done.stdout)
    assert len(texts) == 1


@pytest.mark.parametrize("name", ["BertForPreTraining", "GPT2LMHeadModel", "LlamaForCausalLM", "DistilBertForMaskedLM"])
def test_what_is_printed_is_golden(name: str) -> None:
    model, _ = build(name)
    decided = plan(spec_for(next(item for item in FAMILIES if str(item) == name)), model, REGISTRY)
    found = inventory(model, REGISTRY)
    shown = outline(found, sites(model, REGISTRY), anatomy(found, REGISTRY), decided)
    text = f"{render_plan(decided)}\n\n{render_outline(shown)}\n"
    text = text.replace(decided.architecture, decided.architecture.split(" (", maxsplit=1)[0])
    path = GOLDEN / f"render-{name}.txt"
    if os.environ.get("SURGERY_REGENERATE_GOLDEN"):
        path.write_text(text, "utf-8")
    assert path.is_file(), f"SURGERY_REGENERATE_GOLDEN=1 writes {path.name}"
    assert text == path.read_text("utf-8")


# Counts that the literature or the models' own cards tell -------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "width", "heads", "count"), [(12, 768, 12, 147_456), (24, 1024, 16, 393_216), (36, 1280, 20, 737_280)]
)
def test_lora_on_query_and_value_of_gpt2(layers: int, width: int, heads: int, count: int) -> None:
    from transformers import GPT2Config

    config = GPT2Config(n_layer=layers, n_embd=width, n_head=heads, architectures=["GPT2LMHeadModel"])
    rule = Rule(role=r"attention\.(query|value)", adapter="lora", rank=4, alpha=32, expect=2 * layers)
    assert plan(Spec(name="gpt2", rules=[rule]), config, REGISTRY).parameters == count


@pytest.mark.parametrize(
    ("layers", "width", "heads", "lora", "head"), [(12, 768, 12, 294_912, 592_130), (24, 1024, 16, 786_432, 1_051_650)]
)
def test_roberta(layers: int, width: int, heads: int, lora: int, head: int) -> None:
    from transformers import RobertaConfig

    config = RobertaConfig(
        vocab_size=50265, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
        max_position_embeddings=514, type_vocab_size=1, architectures=["RobertaForSequenceClassification"],
    )  # fmt: skip
    rules = [Rule(role=r"attention\.(query|value)", adapter="lora", rank=8), Rule(role=r"head\..*", adapter="full")]
    decided = plan(Spec(name="roberta", rules=rules), config, REGISTRY)
    assert (decided.adapter_parameters, decided.head_parameters) == (lora, head)


def test_bias_only_of_roberta() -> None:
    from transformers import RobertaConfig

    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    rule = Rule(role=".*", adapter="bias-only", exclude={"role": r"head\..*"})
    assert plan(Spec(name="bitfit", rules=[rule]), config, REGISTRY).parameters == 102_144


def test_a_plan_is_made_from_the_file_of_a_spec(tmp_path: Path) -> None:
    path = tmp_path / "whole.yaml"
    path.write_text(WHOLE.to_yaml(), "utf-8")
    model, _ = build("GPT2LMHeadModel")
    assert (
        plan(path, model, REGISTRY).hash == plan(str(path), model, REGISTRY).hash == plan(WHOLE, model, REGISTRY).hash
    )
