"""What changed in the weights, from checkpoints, models and operations alike, each figure with its control."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import build
from operating import LORA, REGISTRY, operated
from planted import planted
from tuning import PLANTED, base_and_tuned, canonical

from surgery import Rule, Site, Spec, operate, plan
from surgery.errors import PlanError, StateError
from surgery.spectra import Matrix, Settings, matrices_of_models, matrices_of_operation, measure, measure_all, medians
from surgery.spectra.pair import CheckpointPair, matrices_of_checkpoints

SITE = Site("mlp.up", "decoder", 0, "up", "weight", (40, 30), "float64", "linear")
FAMILIES = ("GPT2LMHeadModel", "MixtralForCausalLM", "BertForMaskedLM")


def _matrix(change: torch.Tensor, base: torch.Tensor | None = None) -> Matrix:
    base = planted(40, 30, [1.3**-index for index in range(30)]) if base is None else base
    return Matrix(SITE, None, base, base + change)


def test_planted_change() -> None:
    matrix = _matrix(planted(40, 30, [0.3, 0.2, 0.1], seed=5))
    found = measure(matrix)
    assert found is not None
    assert (found.name, found.role, found.layer, found.expert, found.shape) == (
        "up.weight",
        "mlp.up",
        0,
        None,
        (40, 30),
    )
    assert found.rank == 3
    assert found.relative_norm == pytest.approx(0.14**0.5 / float(matrix.base.norm()))
    assert found.found.stable_rank == pytest.approx(0.14 / 0.09)
    assert found.found.rank_for_energy == 2
    assert found.found.top_ratio == pytest.approx(0.3)
    assert found.missed == 0
    # The control has the same norm and rank, and Gaussian values.
    assert 1 < found.control.stable_rank <= 3
    assert 2 < found.control.entropy_rank < 3


def test_control_of_a_full_change_is_gaussian() -> None:
    """A square Gaussian matrix keeps 90 % of its energy in about 60 % of its values (the quarter circle law)."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(96, 96, generator=generator, dtype=torch.float64)
    delta = torch.diag(torch.linspace(1, 0.1, 96, dtype=torch.float64))
    site = Site("mlp.up", "decoder", 0, "up", "weight", (96, 96), "float64", "linear")
    found = measure(Matrix(site, None, base, base + delta))
    assert found is not None
    values = torch.linalg.svdvals(torch.randn(96, 96, generator=generator, dtype=torch.float64)).square()
    expected = int((values.cumsum(0) < 0.9 * values.sum()).sum()) + 1
    assert abs(found.control.rank_for_energy - expected) <= 3
    assert found.control.stable_rank == pytest.approx(float(values.sum() / values[0]), rel=0.15)


def test_control_depends_on_seed_and_matrix_alone() -> None:
    matrix = _matrix(planted(40, 30, [0.3, 0.2, 0.1], seed=5))
    one, again, other = (measure(matrix, Settings(seed=seed)) for seed in (0, 0, 1))
    assert one == again
    assert one is not None
    assert other is not None
    assert one.control != other.control
    assert one.found == other.found
    elsewhere = measure(Matrix(replace(SITE, path="down"), None, matrix.base, matrix.tuned))
    assert elsewhere is not None
    assert elsewhere.control != one.control
    assert elsewhere.found == one.found


def test_intruders_beside_a_control_that_has_none() -> None:
    """A strong change along one new direction is an intruder; a spread one of the same norm is none."""
    flat = torch.ones(40, dtype=torch.float64) / 40**0.5
    base = torch.eye(40, 30, dtype=torch.float64) * torch.tensor([1.3**-index for index in range(30)])
    delta = torch.outer(flat, planted(1, 30, [1.0])[0]) * 3
    found = measure(_matrix(delta, base))
    assert found is not None
    assert found.found.intruders >= 1
    assert 0.5 < found.found.intruder_energy < 1
    assert found.found.top_ratio == pytest.approx(3)


def test_what_did_not_change_has_no_figures() -> None:
    assert measure(_matrix(torch.zeros(40, 30, dtype=torch.float64))) is None
    assert medians([]) == {}


def test_change_of_nothing_is_json() -> None:
    found = measure(_matrix(planted(40, 30, [1.0]), torch.zeros(40, 30, dtype=torch.float64)))
    assert found is not None
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["relative_norm"] is None
    assert told["found"]["top_ratio"] is None


def test_sketched_measures_are_near_the_exact_ones() -> None:
    matrix = _matrix(planted(40, 30, [0.5**index for index in range(12)], seed=5))
    exact, sketched = (measure(matrix, Settings(exact_up_to=size)) for size in (1024, 8))
    assert exact is not None
    assert sketched is not None
    assert sketched.found.stable_rank == pytest.approx(exact.found.stable_rank, rel=1e-6)
    assert sketched.found.rank_for_energy == exact.found.rank_for_energy


@pytest.mark.parametrize("family", FAMILIES)
def test_three_sources_say_the_same(family: str, tmp_path: Path) -> None:
    base, tuned = base_and_tuned(tmp_path, family)
    live = {one.name: one for one in measure_all(matrices_of_models(base, tuned, REGISTRY))}
    with CheckpointPair(tmp_path / "base", tmp_path / "tuned", REGISTRY) as pair:
        stored = {one.name: one for one in measure_all(matrices_of_checkpoints(pair))}
    assert live == stored
    assert all(one.rank <= PLANTED or one.shape[0] * one.shape[1] < 64 for one in live.values())
    spec = Spec(name="all", rules=[Rule(role=".*", adapter="full", tied="share")])
    with operate(base, plan(spec, base, REGISTRY), registry=REGISTRY) as op:
        values, names = dict(tuned.named_parameters()), op.trainable_sites()
        with torch.no_grad():
            for name, parameter in op.trainable().items():
                parameter.copy_(values[names[name].name])
        assert {one.name: one for one in measure_all(matrices_of_operation(op))} == live
    if family == "MixtralForCausalLM":
        assert {one.expert for one in live.values() if one.role.startswith("moe.experts")} != {None}


def test_operation_gives_what_merging_gives_and_reads_pristine_weights_while_merged() -> None:
    model, _ = build("GPT2LMHeadModel")
    names = {
        f"transformer.h.{layer}.attn.c_attn.weight:attention.{part}" for layer in (0, 1) for part in ("query", "value")
    }
    before = {name: canonical(model, name) for name in names}
    with operated(model, {"role": r"attention\.(query|value)", **LORA}) as op:
        unmerged = {one.name: one for one in matrices_of_operation(op) if bool(one.change.any())}
        assert set(unmerged) == names
        op.merge()
        merged = {one.name: one for one in matrices_of_operation(op) if bool(one.change.any())}
        for name in names:
            live = canonical(model, name)
            assert torch.equal(unmerged[name].base, before[name])
            assert torch.equal(merged[name].base, before[name])
            assert torch.equal(unmerged[name].tuned, merged[name].tuned)
            assert torch.allclose(unmerged[name].tuned, live, rtol=0, atol=1e-6)
        with pytest.raises(StateError, match="no adapter 'other'"):
            next(matrices_of_operation(op, "other"))


def test_medians_are_over_matrices() -> None:
    several = [measure(_matrix(planted(40, 30, [0.1] * count, seed=5))) for count in (1, 2, 7)]
    told = medians([one for one in several if one is not None])
    assert told["rank"] == 2
    assert told["stable_rank"] == pytest.approx(2)
    assert told["control_rank_for_energy"] == 2


def test_models_that_do_not_fit() -> None:
    base, other = build("GPT2LMHeadModel")[0], build("GPT2LMHeadModel", n_layer=1)[0]
    with pytest.raises(PlanError, match="the tuned model has no 'transformer.h.1"):
        list(matrices_of_models(base, other, REGISTRY))
    wide = build("GPT2LMHeadModel", n_inner=24)[0]
    with pytest.raises(PlanError, match="has the shapes"):
        list(matrices_of_models(base, wide, REGISTRY))
