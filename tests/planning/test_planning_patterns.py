"""Patterns from strangers over big models: whatever they cost, planning ends within a second and says which rule."""

from __future__ import annotations

import time

import pytest

from surgery import Rule, Site, Spec, load_registry, plan
from surgery.errors import PlanError, SurgeryError
from surgery.planning.inventory import Inventory, ParameterEntry
from surgery.planning.match import Matching
from surgery.planning.resolve import resolve
from surgery.planning.sites import sites_of

REGISTRY = load_registry()
SLOW = r"(.*?\w){5}\W"
"""Takes ten to fifty milliseconds for each name: never so long that one match alone is refused."""


CATASTROPHIC = r"(\w|\w\w|\.)*\d"


def entries(layers: int) -> tuple[ParameterEntry, ...]:
    linear = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "post_attention_layernorm", "mlp.down_proj")
    return tuple(
        ParameterEntry(f"model.layers.{layer}.{name}", "weight", (8, 8), "float32", "linear")
        for layer in range(layers)
        for name in linear
    )


def spent(rules: list[Rule], layers: int) -> tuple[float, SurgeryError]:
    found = Inventory("llama", "", "headers", entries(layers))
    sites = sites_of(found, None)
    start = time.thread_time()
    with pytest.raises(SurgeryError) as caught:
        resolve(rules, sites, found, REGISTRY)
    return time.thread_time() - start, caught.value


@pytest.mark.parametrize("layers", [10, 200])
def test_many_slow_matches_end_within_a_second(layers: int) -> None:
    seconds, error = spent([Rule(target=SLOW, adapter="full")], layers)
    assert seconds < 1
    assert "processor time" in error.what or "took more than 50 ms" in error.what
    assert error.problems[0].where.startswith("rules[0]")
    assert "simplify" in error.hint


def test_one_catastrophic_match_ends_within_a_second() -> None:
    seconds, error = spent([Rule(target=CATASTROPHIC, adapter="full")], 200)
    assert seconds < 1
    assert "took more than 50 ms" in error.what
    assert error.problems[0].where.startswith("rules[0]")


@pytest.mark.parametrize("pattern", [SLOW, CATASTROPHIC])
def test_hundreds_of_slow_rules_share_one_budget(pattern: str) -> None:
    seconds, _ = spent([Rule(target=pattern, adapter="full")] * 256, 20)
    assert seconds < 1


def test_an_exclusion_is_bounded_as_well() -> None:
    rule = Rule(target=".*", exclude={"target": SLOW}, adapter="full")
    assert spent([rule], 200)[0] < 1


def test_plan_of_a_live_model_is_bounded() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=60, num_attention_heads=2, intermediate_size=8)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    start = time.thread_time()
    with pytest.raises(PlanError, match="processor time|took more than 50 ms"):
        plan(Spec(name="slow", rules=[Rule(target=SLOW, adapter="full")]), model, REGISTRY)
    assert time.thread_time() - start < 1.2


def test_honest_rules_over_fifty_thousand_names_fit_in_the_budget() -> None:
    sites = [
        Site("other.x", "decoder", layer, f"model.layers.{layer}.mlp.experts.{expert}.{name}", "weight", (2, 2), "float32", "linear")
        for layer in range(60)
        for expert in range(256)
        for name in ("up_proj", "gate_proj", "down_proj")
    ]  # fmt: skip
    matching = Matching(sites, 2)
    rule = Rule(target=r"model\.layers\.\d+\.mlp\.experts\.\d+\.(up|gate)_proj", layers="last 2", adapter="full")
    assert len(matching.sites(rule)) == 2 * 2 * 256
    assert not matching.is_over


def test_suggestions_over_many_names_are_quick() -> None:
    found = Inventory("x", "", "headers", entries(3000))
    sites = sites_of(found, None)
    rules = [Rule(target=f"{index}" + "x" * 500, adapter="full") for index in range(20)]
    start = time.thread_time()
    with pytest.raises(PlanError, match="matches no site"):
        resolve(rules, sites, found, REGISTRY)
    assert time.thread_time() - start < 3
