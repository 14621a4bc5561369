"""Specs that say the rank of every matrix: exact, and no longer than a spec may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from families import build
from operating import REGISTRY
from torch import nn

import surgery
from surgery.architecture import Site
from surgery.planning import Edit
from surgery.spectra.ranked_spec import Ranked, ranked_spec

TEMPLATE = surgery.Spec(name="all", rules=[{"role": ".*", "adapter": "lora", "rank": 1, "tied": "share"}])


def _claims(adapter: str, site: Site) -> bool:
    return REGISTRY.adapter(adapter).claims(site)


def _ranked(
    model: nn.Module, rank_of: Callable[[int, Edit], int], template: surgery.Spec = TEMPLATE
) -> tuple[list[Ranked], surgery.Spec, tuple[Ranked, ...]]:
    plan = surgery.plan(template, model, REGISTRY)
    chosen = [Ranked(edit, rank_of(number, edit)) for number, edit in enumerate(plan.edits)]
    spec, said = ranked_spec(chosen, template, surgery.sites(model, REGISTRY), _claims, "made")
    return chosen, spec, said


def _says(spec: surgery.Spec, model: nn.Module) -> dict[str, int]:
    return {edit.site.key: edit.options.rank for edit in surgery.plan(spec, model, REGISTRY).edits}


@pytest.mark.parametrize(
    "family", ["GPT2LMHeadModel", "BertForMaskedLM", "MixtralForCausalLM", "T5ForConditionalGeneration", "BartModel"]
)
def test_plan_of_the_spec_has_the_ranks(family: str, tmp_path: Path) -> None:
    model, _ = build(family)
    for rank_of in (
        lambda number, _: 1 + number % 5,
        lambda number, _: 4,
        lambda number, edit: 1 + (edit.site.layer or 0),
    ):
        chosen, spec, said = _ranked(model, rank_of)
        assert _says(spec, model) == {one.edit.site.key: one.rank for one in chosen}
        assert [one.rank for one in said] == [one.rank for one in chosen]
        (tmp_path / "spec.yaml").write_text(spec.to_yaml())
        assert surgery.load_spec(tmp_path / "spec.yaml", REGISTRY) == spec


def test_equal_ranks_are_one_rule_for_a_role() -> None:
    model, _ = build("GPT2LMHeadModel", n_layer=3)
    _, spec, _ = _ranked(model, lambda number, edit: 2 if edit.site.layer == 1 else 3)
    query = [rule for rule in spec.rules if rule.role == r"attention\.query"]
    assert [(rule.layers, rule.options["rank"], rule.options["alpha"]) for rule in query] == [
        ((0, 2), 3, 3.0), ((1,), 2, 2.0),
    ]  # fmt: skip


def test_layers_of_two_stacks_are_told_apart_by_name() -> None:
    model, _ = build("BartModel")
    stacks = {edit.site.stack for edit in surgery.plan(TEMPLATE, model, REGISTRY).edits if edit.site.stack}
    assert len(stacks) == 2
    chosen, spec, _ = _ranked(model, lambda number, edit: 2 if edit.site.stack == "encoder" else 3)
    assert _says(spec, model) == {one.edit.site.key: one.rank for one in chosen}


def test_too_many_ranks_are_rounded_up_to_fit() -> None:
    model, _ = build("LlamaForCausalLM", num_hidden_layers=40, hidden_size=64, intermediate_size=128)
    chosen, spec, said = _ranked(model, lambda number, _: 1 + number % 31)
    assert len({(one.edit.site.role, one.rank) for one in chosen}) > 200
    assert len(spec.rules) <= 256
    wanted = {one.edit.site.key: one.rank for one in said}
    assert _says(spec, model) == wanted
    for one in chosen:
        most = min(one.edit.site.fan_in, one.edit.site.fan_out)
        assert one.rank <= wanted[one.edit.site.key] <= min(2 * one.rank, most)


def test_options_are_kept_and_oversized_is_allowed_where_needed() -> None:
    model, _ = build("GPT2LMHeadModel")
    rule = {"role": r"attention\.query", "adapter": "lora", "rank": 1, "alpha": 4, "dropout": 0.1, "init": "gaussian"}
    template = surgery.Spec(name="all", seed=5, rules=[rule])
    _, spec, _ = _ranked(model, lambda number, edit: 2 if edit.site.layer else 15, template)
    assert spec.seed == 5
    assert {(r.options["rank"], r.allow_oversized) for r in spec.rules} == {(2, False), (15, True)}
    assert all(r.options["alpha"] == 4 and r.options["dropout"] == 0.1 for r in spec.rules)
