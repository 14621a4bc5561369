"""Roles without a plugin: names where shapes agree, nothing from a fused name, and no rule that misses silently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, Family, build

from surgery import Rule, Spec, load_registry, plan
from surgery.architecture import Architecture, Site
from surgery.errors import PlanError
from surgery.planning import anatomy, draft_architecture, inventory
from surgery.planning.infer import infer
from surgery.planning.inventory import Inventory, ParameterEntry
from surgery.planning.measured import inferred
from surgery.planning.sites import sites_of
from surgery.registry import Registry

REGISTRY = load_registry()
UNDECLARED = Registry({**REGISTRY.adapters}, {}, {**REGISTRY.models}, {}, {})
ATTENTION = {"q_proj": (16, 16), "k_proj": (8, 16), "v_proj": (8, 16), "o_proj": (16, 16)}


def taken(sites: tuple[Site, ...]) -> dict[str, dict[str, Any]]:
    """Return parameter name -> role -> indices of its part."""
    found: dict[str, dict[str, Any]] = {}
    for site in sites:
        found.setdefault(site.name, {})[site.role] = site.slice.indices() if site.slice else None
    return found


@pytest.mark.parametrize("item", FAMILIES, ids=str)
def test_no_role_is_inferred_that_a_plugin_contradicts(item: Family) -> None:
    model, _ = build(item)
    found = inventory(model, REGISTRY)
    declared = taken(sites_of(found, anatomy(found, REGISTRY).architecture))
    inferred = taken(sites_of(found, infer(found).architecture))
    wrong = {
        name: (roles, declared[name])
        for name, roles in inferred.items()
        if not next(iter(roles)).startswith("other.") and roles != declared[name]
    }
    assert not wrong


@pytest.mark.parametrize("name", ["BertForMaskedLM", "LlamaForCausalLM", "GPT2LMHeadModel"])
def test_headers_tell_the_same_roles_as_the_model(name: str, tmp_path: Path) -> None:
    model, _ = build(name)
    model.save_pretrained(tmp_path)
    from_file, from_model = inventory(tmp_path, UNDECLARED), inventory(model, UNDECLARED)
    told = {site.key: site.role for site in sites_of(from_file, infer(from_file).architecture)}
    expected = {site.key: site.role for site in sites_of(from_model, infer(from_model).architecture)}
    # Only the model says that GPT-2 stores its weights the other way round; without that their shapes do not agree.
    differing = {key for key, role in told.items() if role != expected[key]}
    assert all(name == "GPT2LMHeadModel" and told[key].startswith("other.") for key in differing)
    assert any(role == "mlp.up" for role in told.values()) or name == "GPT2LMHeadModel"


def inventory_of(layer: Mapping[str, tuple[int, ...]], **settings: Any) -> Inventory:
    entries = [
        ParameterEntry(f"model.layers.{index}.{path}", "weight", shape, "float32", "linear")
        for index in range(2)
        for path, shape in layer.items()
    ]
    return Inventory("strange", "Strange", "model", tuple(entries), {}, settings)


def roles_of(found: Inventory) -> dict[str, str]:
    return {site.path: site.role for site in sites_of(found, infer(found).architecture)}


def test_a_query_that_holds_a_gate_stays_open() -> None:
    shapes = {f"self_attn.{name}": shape for name, shape in ATTENTION.items()}
    assert roles_of(inventory_of(shapes))["model.layers.1.self_attn.q_proj"] == "attention.query"
    found = inventory_of({**shapes, "self_attn.q_proj": (32, 16)})
    assert roles_of(found)["model.layers.1.self_attn.q_proj"] == "other.model.layers.1.self_attn.q_proj"
    assert "may hold a gate" in next(item.why for item in infer(found).open)


def test_an_mlp_that_holds_its_gate_stays_open() -> None:
    layer = {"self_attn.q_proj": (8, 8), "mlp.fc1": (48, 8), "mlp.fc2": (8, 24)}
    assert roles_of(inventory_of({**layer, "mlp.fc1": (24, 8)}))["model.layers.0.mlp.fc1"] == "mlp.up"
    assert roles_of(inventory_of(layer))["model.layers.0.mlp.fc1"].startswith("other.")


def test_a_fused_name_is_never_cut() -> None:
    found = inventory_of({"self_attn.qkv_proj": (24, 8), "self_attn.o_proj": (8, 8)})
    site = next(site for site in sites_of(found, infer(found).architecture) if site.path.endswith("qkv_proj"))
    assert site.slice is None
    assert site.open == ("attention.query", "attention.key", "attention.value")


def test_linear_attention_is_not_taken_for_attention() -> None:
    layer = {f"self_attn.{name}": (8, 8) for name in ATTENTION} | {"self_attn.b_proj": (2, 8)}
    assert roles_of(inventory_of(layer))["model.layers.0.self_attn.q_proj"] == "linear_attention.query"


def test_a_name_that_means_two_things_stays_open() -> None:
    plain = {f"self_attn.{name}": (8, 8) for name in ATTENTION}
    one, two = inventory_of(plain), inventory_of({**plain, "self_attn.b_proj": (2, 8)})
    mixed = (*[e for e in one.entries if ".0." in e.path], *[e for e in two.entries if ".1." in e.path])
    roles = roles_of(Inventory("strange", "Strange", "model", mixed))
    assert all(role.startswith("other.") for path, role in roles.items() if path.endswith("q_proj"))


@pytest.mark.parametrize("rank", [8, 7, 0, -1, "8", None, True, 10**30])
def test_latent_attention_is_cut_only_where_its_sizes_add_up(rank: Any) -> None:
    layer = {"self_attn.q_proj": (8, 8), "self_attn.kv_a_proj_with_mqa": (12, 8), "self_attn.o_proj": (8, 8)}
    sizes = {"qk_rope_head_dim": 4, "num_attention_heads": 2, "qk_nope_head_dim": 4, "v_head_dim": 4}
    found = inventory_of(layer, kv_lora_rank=rank, **sizes)
    roles = {site.role for site in sites_of(found, infer(found).architecture)}
    assert ("attention.kv_down" in roles) == (rank == 8 and rank is not True)


def test_a_rule_that_may_mean_an_open_weight_fails_and_says_how_to_go_on() -> None:
    from transformers import PersimmonConfig, PersimmonForCausalLM

    model = PersimmonForCausalLM(
        PersimmonConfig(vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    )
    unmeasured = replace(UNDECLARED, models={})
    with pytest.raises(PlanError) as caught:
        plan(Spec(name="x", rules=[Rule(role=r"attention\.query", adapter="lora", rank=2)]), model, unmeasured)
    problem = caught.value.problems[0]
    assert "query_key_value.weight (and 1 more) may hold attention.query or attention.key" in problem.what
    assert "surgery architecture draft" in problem.hint
    rules = [
        Rule(role=r"(attention|mlp)\..*", exclude={"target": r".*query_key_value"}, adapter="lora", rank=2, expect=6),
        Rule(target=r".*query_key_value", adapter="lora", rank=2, expect=2),
    ]
    assert plan(Spec(name="x", rules=rules), model, unmeasured).parameters > 0


@pytest.mark.parametrize(("registry", "said"), [(UNDECLARED, "not inferred"), (REGISTRY, "did you mean")])
def test_a_rule_on_norms_of_an_inferred_type_says_what_to_type(registry: Registry, said: str) -> None:
    model, _ = build("LlamaForCausalLM")
    with pytest.raises(PlanError) as caught:
        plan(Spec(name="x", rules=[Rule(role=r"norm\.attention\.pre|norm\.x", adapter="full")]), model, UNDECLARED)
    hint = caught.value.problems[0].hint
    assert hint == r"norms are not inferred: say `target: .*\.input_layernorm`, or describe them in a plugin"
    rule = Rule(target=hint.split("`")[1].removeprefix("target: "), adapter="full", expect=2)
    assert plan(Spec(name="x", rules=[rule]), model, UNDECLARED).edits
    with pytest.raises(PlanError) as caught:
        plan(Spec(name="x", rules=[Rule(role=r"norm\.atention\.pre", adapter="full")]), model, registry)
    assert said in caught.value.problems[0].hint


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "LlamaForCausalLM", "GPT2LMHeadModel"])
def test_a_draft_is_a_plugin_that_says_what_was_inferred(name: str) -> None:
    model, _ = build(name)
    drafted = draft_architecture(model, REGISTRY)
    space: dict[str, Any] = {}
    exec(drafted.source, space)
    architecture = next(value for value in space.values() if isinstance(value, Architecture))
    found = inventory(model, REGISTRY)
    assert sites_of(found, architecture) == sites_of(found, inferred(found, REGISTRY).architecture)
    assert drafted.declared_by.startswith("model-surgery")


def test_an_adapter_of_inferred_roles_is_loaded_without_a_plugin(tmp_path: Path) -> None:
    from surgery import load_adapter, operate

    model, _ = build("LlamaForCausalLM")
    decided = plan(Spec(name="x", rules=[Rule(role=r"attention\.query", adapter="lora", rank=2)]), model, UNDECLARED)
    assert "(inferred from names)" in decided.architecture
    with operate(model, decided, registry=UNDECLARED) as op:
        op.save(tmp_path / "a")
    load_adapter(model, tmp_path / "a", registry=UNDECLARED).undo()


def test_a_model_of_plain_modules_has_no_roles() -> None:
    from torch import nn

    found = inventory(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), REGISTRY)
    assert anatomy(found, REGISTRY).architecture is None


def test_a_setting_that_cannot_be_read_is_one_that_is_not_there() -> None:
    """Configurations whose sizes differ between layers raise an error of their own for those sizes."""
    from torch import nn

    class Config:
        model_type = "strange"

        @property
        def kv_lora_rank(self) -> int:
            raise RuntimeError("ask the layers")

    attention = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "kv_a_proj_with_mqa": nn.Linear(8, 12)})
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"self_attn": attention})])})
    model.config = Config()  # type: ignore[assignment]
    found = inventory(model, REGISTRY)
    assert "kv_lora_rank" not in found.settings
    assert [item.path for item in infer(found).open] == ["*.self_attn.kv_a_proj_with_mqa"]
