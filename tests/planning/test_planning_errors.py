"""Every way in which a spec does not fit a model, word for word. SURGERY_REGENERATE_GOLDEN=1 rewrites golden/*.txt."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from torch import nn

from surgery import ModelSource, Rule, Spec, hookimpl, load_registry, plan, sites
from surgery.errors import CheckpointError, PlanError, PluginError, SpecError

GOLDEN = Path(__file__).parent / "golden"
REGISTRY = load_registry()


def bert() -> nn.Module:
    return build("BertForSequenceClassification")[0]


def gpt2() -> nn.Module:
    return build("GPT2LMHeadModel")[0]


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))


Q = r"attention\.query"
LORA: dict[str, Any] = {"adapter": "lora", "rank": 2}
FULL: dict[str, Any] = {"adapter": "full"}
BIAS: dict[str, Any] = {"adapter": "bias-only"}

CASES: dict[str, tuple[Callable[[], nn.Module], list[dict[str, Any]]]] = {
    "no-match-role": (bert, [{"role": r"atention\.query", **LORA}]),
    "no-match-role-many": (bert, [{"role": r"x{3}", **LORA}]),
    "no-match-target": (bert, [{"target": r"bert\.encodr\.layer\.0\.output\.dense", **LORA}]),
    "no-match-both": (bert, [{"role": Q, "target": r"bert\.pooler\.dense", **LORA}]),
    "no-match-role-without-architecture": (plain, [{"role": Q, **LORA}]),
    "no-match-target-without-architecture": (plain, [{"target": "3", **LORA}]),
    "no-match-excluded": (bert, [{"role": Q, "exclude": {"role": r"attention\..*"}, **LORA}]),
    "exclude-nothing": (bert, [{"role": r"attention\..*", "exclude": {"role": r"atention\.query"}, **LORA}]),
    "exclude-others": (bert, [{"role": r"attention\..*", "exclude": {"role": r"mlp\..*"}, **LORA}]),
    "exclude-no-target": (plain, [{"target": ".*", "exclude": {"target": "l.head"}, **FULL}]),
    "shadowed": (bert, [{"role": r"attention\..*", **LORA}, {"role": Q, **LORA}]),
    "shadowed-by-several": (
        bert,
        [{"role": Q, "layers": "0", **LORA}, {"role": Q, "layers": "last 1", **FULL}, {"role": Q, **LORA}],
    ),
    "layer-too-high": (bert, [{"role": Q, "layers": [0, 7], **LORA}]),
    "layer-too-low": (bert, [{"role": Q, "layers": [-3], **LORA}]),
    "layer-range": (bert, [{"role": Q, "layers": "1-4", **LORA}]),
    "layers-too-many": (bert, [{"role": Q, "layers": "last 3", **LORA}]),
    "layers-of-a-head": (bert, [{"role": r"head\..*", "layers": [0], **FULL}]),
    "layers-without-architecture": (plain, [{"target": "0", "layers": [0], **FULL}]),
    "expect": (bert, [{"role": Q, "expect": 3, **LORA}]),
    "expect-after-loss": (bert, [{"role": Q, "layers": [0], **LORA}, {"role": r"attention\..*", "expect": 8, **LORA}]),
    "tied-cut": (gpt2, [{"target": "lm_head", **LORA}]),
    "tied-cut-by-role": (gpt2, [{"role": r"embedding\.token", **FULL}]),
    "tied-mixed": (
        gpt2,
        [{"target": "lm_head", "tied": "untie", **FULL}, {"role": r"embedding\.token", "tied": "share", **FULL}],
    ),
    "oversized": (bert, [{"role": Q, "adapter": "lora", "rank": 9}]),
    "oversized-vector-companion": (bert, [{"role": Q, "adapter": "lora", "rank": 8, "bias": True}]),
    "adapts-none": (bert, [{"role": r"norm\..*", **LORA}]),
    "adapts-none-bias": (gpt2, [{"role": r"embedding\..*", **BIAS}]),
    "companion-missing": (gpt2, [{"role": r"embedding\.position", "adapter": "lora", "rank": 1, "bias": True}]),
    "companion-taken": (bert, [{"role": Q, **BIAS}, {"role": Q, "adapter": "lora", "rank": 2, "bias": True}]),
    "several": (
        bert,
        [
            {"role": r"atention\.query", **LORA},
            {"role": r"attention\.key", "layers": [9], **LORA},
            {"role": r"attention\.value", "expect": 1, **LORA},
            {"role": r"attention\.output", "adapter": "lora", "rank": 100},
            {"role": r"mlp\.up", **LORA},
            {"role": r"norm\..*", **LORA},
        ],
    ),
}  # fmt: skip


def refused(model: nn.Module, rules: list[dict[str, Any]]) -> PlanError:
    with pytest.raises(PlanError) as caught:
        plan(Spec(name="refused", rules=[Rule(**rule) for rule in rules]), model, REGISTRY)
    return caught.value


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_message_is_golden(name: str) -> None:
    make, rules = CASES[name]
    text = f"{refused(make(), rules)}\n"
    path = GOLDEN / f"error-{name}.txt"
    if os.environ.get("SURGERY_REGENERATE_GOLDEN"):
        path.write_text(text, "utf-8")
    assert path.is_file(), f"SURGERY_REGENERATE_GOLDEN=1 writes {path.name}"
    assert text == path.read_text("utf-8")
    assert not re.search(r"Traceback|NoneType|object at 0x", text)
    first = [line for line in text.splitlines() if not line.startswith("  hint: ")]
    assert all(re.match(r"rules\[\d+\]", line) for line in first), "every problem says which rule"


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("error-*.txt")} == {f"error-{name}" for name in CASES}


def test_several_problems_come_at_once_each_with_its_rule() -> None:
    problems = refused(bert(), CASES["several"][1]).problems
    assert [re.findall(r"rules\[(\d)\]", problem.where)[0] for problem in problems] == ["0", "1", "2", "3", "5"]


@pytest.mark.parametrize("tied", ["share", "untie"])
def test_a_tied_weight_may_be_cut_on_request(tied: str) -> None:
    decided = plan(Spec(name="tied", rules=[Rule(target="lm_head", tied=tied, **LORA)]), gpt2(), REGISTRY)
    (edit,) = decided.edits
    assert (edit.tied, edit.site.name, edit.site.tied) == (tied, "lm_head.weight", ("transformer.wte.weight",))


def test_both_names_of_a_tied_weight_are_one_site() -> None:
    rule = Rule(target=r"lm_head|transformer\.wte", expect=1, **LORA)
    (edit,) = plan(Spec(name="tied", rules=[rule]), gpt2(), REGISTRY).edits
    assert (edit.tied, edit.site.name) == ("share", "transformer.wte.weight")


def test_oversized_is_allowed_on_request() -> None:
    rule = Rule(role=Q, adapter="lora", rank=9, allow_oversized=True)
    assert plan(Spec(name="large", rules=[rule]), bert(), REGISTRY).parameters == 2 * 9 * 32


def test_rules_compose_by_parameter() -> None:
    """LoRA on query and value, bias-only on everything: each parameter has one winner."""
    rules = [Rule(role=r"attention\.(query|value)", **LORA), Rule(role=r".*", **BIAS)]
    decided = plan(Spec(name="both", rules=rules), bert(), REGISTRY)
    assert [outcome.lost for outcome in decided.outcomes] == [{}, {}]
    assert len({edit.site.key for edit in decided.edits}) == len(decided.edits)


def test_unknown_adapters_and_options_are_their_own_errors() -> None:
    with pytest.raises(PluginError, match="no adapter is called 'lorra'"):
        plan(Spec(name="x", rules=[Rule(role=".*", adapter="lorra")]), bert(), REGISTRY)
    with pytest.raises(SpecError, match="rnak"):
        plan(Spec(name="x", rules=[Rule(role=".*", adapter="lora", rnak=1)]), bert(), REGISTRY)


def test_layers_are_counted_in_the_stacks_that_the_patterns_reach() -> None:
    """An encoder of two layers does not keep a rule from the fifth layer of its decoder."""
    from types import SimpleNamespace

    from surgery import Architecture, hookimpl

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(2, 2)}) for _ in range(2))
            self.decoder = nn.ModuleList(nn.ModuleDict({"x": nn.Linear(2, 2)}) for _ in range(5))
            self.config = SimpleNamespace(model_type="two-stacks")

    class Plugin:
        @hookimpl
        def surgery_architectures(self) -> list[Architecture]:
            roles = {"attention.query": "*.q", "cross_attention.query": "*.x"}
            return [Architecture(("two-stacks",), "", {"encoder": "encoder", "decoder": "decoder"}, roles)]

    registry = load_registry([Plugin()])
    rule = Rule(role=r"cross_attention\.query", layers=[4], **FULL)
    decided = plan(Spec(name="stacks", rules=[rule]), Both(), registry)
    assert [edit.site.name for edit in decided.edits] == ["decoder.4.x.weight", "decoder.4.x.bias"]
    with pytest.raises(PlanError, match="layer 4 does not exist"):
        plan(Spec(name="stacks", rules=[Rule(role=r".*", layers=[4], **FULL)]), Both(), registry)


def test_a_plan_of_what_cannot_be_planned() -> None:
    with pytest.raises(PlanError, match="cannot take the inventory of int"):
        plan(Spec(name="x", rules=[Rule(role=".*", **FULL)]), 3, REGISTRY)


def test_a_folder_of_a_type_that_transformers_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "acme-net"}', "utf-8")
    for subject in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(CheckpointError, match="transformers knows no model of type 'acme-net'") as caught:
            sites(subject, REGISTRY)
        assert caught.value.hint.startswith(
            "put model.safetensors beside config.json, or build the model in skeleton()"
        )


@pytest.mark.parametrize("name", ["acme", "zulu"])
def test_a_source_of_models_is_asked_also_where_another_one_cannot(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "acme-net"}', "utf-8")

    class Acme(ModelSource):
        summary = "for tests"

        def resolve(self, ref: str) -> None:
            return None

        def skeleton(self, ref_or_config: Any, auto_class: str | None = None) -> nn.Module:
            return nn.Sequential(nn.Linear(2, 2, device="meta"))

    Acme.name = name

    class Plugin:
        @hookimpl
        def surgery_models(self) -> list[ModelSource]:
            return [Acme()]

    assert [site.name for site in sites(tmp_path, load_registry([Plugin()]))] == ["0.weight", "0.bias"]


def test_a_plan_of_an_exotic_dtype_renders() -> None:
    model = nn.Sequential(nn.Linear(3, 3, dtype=torch.complex64))
    decided = plan(Spec(name="x", rules=[Rule(target="0", **FULL)]), model, REGISTRY)
    assert decided.gradient_bytes == 12 * 8
    assert "12 parameters" in str(decided)
