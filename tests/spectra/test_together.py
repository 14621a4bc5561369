"""Overlap of what two tunings changed, matrix by matrix."""

from __future__ import annotations

import pytest
import torch
from families import build
from operating import LORA, REGISTRY, operated
from planted import orthogonal
from tuning import plant

from surgery import Site
from surgery.errors import StateError
from surgery.spectra import Matrix, directions, matrices_of_models, matrices_of_operation, measure_overlaps

SIZE = 32


def _tuning(delta: torch.Tensor, name: str = "up") -> Matrix:
    site = Site("mlp.up", "decoder", 0, name, "weight", (SIZE, SIZE), "float64", "linear")
    base = orthogonal(SIZE, 3)
    return Matrix(site, None, base, base + delta)


def _change(columns: slice) -> torch.Tensor:
    left, right = orthogonal(SIZE, 0)[:, columns], orthogonal(SIZE, 1)[:, columns]
    return left @ torch.diag(torch.arange(left.shape[1], 0, -1, dtype=torch.float64)) @ right.mT


def test_same_half_and_other_directions() -> None:
    base = directions([_tuning(_change(slice(4)))])
    for columns, expected in ((slice(4), 1.0), (slice(2, 6), 0.5), (slice(4, 8), 0.0)):
        (found,) = measure_overlaps(base, directions([_tuning(_change(columns))]))
        assert (found.i, found.j) == (4, 4)  # eight were asked for; the changes have four
        assert (found.left, found.right) == pytest.approx((expected, expected), abs=1e-9)
        assert (found.expected_left, found.expected_right) == (4 / SIZE, 4 / SIZE)
        assert 0 < found.control_left < 0.5
        assert 0 < found.control_right < 0.5
        assert found.to_dict()["name"] == "up.weight"


def test_sides_are_told_apart() -> None:
    left, right, other = orthogonal(SIZE, 0)[:, :3], orthogonal(SIZE, 1)[:, :3], orthogonal(SIZE, 1)[:, 3:6]
    one, two = (directions([_tuning(left @ inputs.mT)]) for inputs in (right, other))
    (found,) = measure_overlaps(one, two)
    assert found.left == pytest.approx(1)
    assert found.right == pytest.approx(0, abs=1e-9)


def test_count_seed_and_what_only_one_has() -> None:
    several = [_tuning(_change(slice(6)), name) for name in ("a", "b")]
    one, two = directions(several, 2), directions(several[1:], 3)
    (found,) = measure_overlaps(one, two)
    assert (found.name, found.i, found.j) == ("b.weight", 2, 3)
    (again,), (other,) = (list(measure_overlaps(one, two, seed=seed)) for seed in (0, 1))
    assert again == found
    assert other.control_left != found.control_left
    assert directions([_tuning(torch.zeros(SIZE, SIZE, dtype=torch.float64))]) == {}
    with pytest.raises(StateError, match="no matrix in common"):
        list(measure_overlaps(directions(several[:1]), two))
    with pytest.raises(StateError, match="0 directions"):
        directions(several, 0)


def test_controls_are_near_their_expectation() -> None:
    many = directions([_tuning(_change(slice(8)), f"m{index}") for index in range(30)])
    found = list(measure_overlaps(many, many))
    for side in ("left", "right"):
        mean = sum(getattr(one, f"control_{side}") for one in found) / len(found)
        assert mean == pytest.approx(getattr(found[0], f"expected_{side}"), abs=0.02)


def test_seeds_of_an_adapter_and_a_full_tuning() -> None:
    """What LoRA and full tuning changed in common is what both changed: LoRA's matrices."""
    model, _ = build("GPT2LMHeadModel")
    tuned, _ = build("GPT2LMHeadModel")
    plant(tuned)
    full = directions(matrices_of_models(model, tuned, REGISTRY))
    with operated(model, {"role": r"attention\.(query|value)", **LORA}) as op:
        lora = directions(matrices_of_operation(op))
    assert len(lora) == 4
    found = list(measure_overlaps(lora, full))
    assert {one.role for one in found} == {"attention.query", "attention.value"}
    assert {(one.i, one.j) for one in found} == {(2, 3)}
    assert all(0 <= one.left <= 1 and 0 <= one.right <= 1 for one in found)
