"""Singular values and vectors: exact ones, sketched ones with their errors, and those of products."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import orthogonal, planted

from surgery.errors import StateError
from surgery.spectra import (
    decompose,
    decompose_product,
    entropy_rank,
    leading,
    numerical_rank,
    rank_for_energy,
    stable_rank,
)

VALUES = (8.0, 4.0, 2.0, 1.0)


def test_planted_values_are_found() -> None:
    matrix = planted(12, 7, VALUES)
    found = decompose(matrix)
    assert torch.allclose(found.values[:4], torch.tensor(VALUES, dtype=torch.float64))
    assert found.values[4:].abs().max() < 1e-12
    assert found.energy == pytest.approx(85.0)
    assert found.norm == pytest.approx(math.sqrt(85.0))
    assert found.shape == (12, 7)
    assert (found.is_exact, found.missed, found.spectral_error) == (True, 0.0, 0.0)
    assert torch.allclose((found.left * found.values) @ found.right, matrix)


def test_cutting_tells_what_is_missed() -> None:
    cut = decompose(planted(12, 7, VALUES)).cut(2)
    assert len(cut.values) == 2
    assert cut.missed == pytest.approx(5 / 85)
    assert cut.spectral_error == pytest.approx(2.0)


def test_sketch_finds_the_leading_values_and_tells_its_errors() -> None:
    values = [10.0 * 0.8**index for index in range(100)]
    matrix = planted(120, 100, values)
    found = decompose(matrix, rank=10, exact_up_to=20)
    assert not found.is_exact
    assert len(found.values) == 20  # ten more than asked for
    assert torch.allclose(found.values[:10], torch.tensor(values[:10], dtype=torch.float64), rtol=1e-6)
    rest = matrix - (found.left * found.values) @ found.right
    assert found.missed == pytest.approx(float(rest.square().sum() / matrix.square().sum()), rel=1e-6)
    spectral = float(torch.linalg.matrix_norm(rest, 2))
    assert spectral <= found.spectral_error <= 100 * spectral


def test_sketch_grows_until_it_holds_the_energy_and_else_is_exact() -> None:
    steep = planted(300, 280, [2.0**-index for index in range(40)])
    assert not decompose(steep, energy=0.99, exact_up_to=20).is_exact
    flat = torch.randn(300, 280, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert decompose(flat, energy=0.9, exact_up_to=20).is_exact
    middle = planted(300, 300, [1.0] * 100)
    found = decompose(middle, energy=0.95, exact_up_to=20)
    assert not found.is_exact
    assert rank_for_energy(found, 0.95) == 95


def test_seed_decides_the_sketch_and_the_process_has_no_part_in_it() -> None:
    matrix = torch.randn(60, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = decompose(matrix, rank=3, exact_up_to=10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = (decompose(matrix, rank=3, exact_up_to=10, seed=seed) for seed in (0, 1))
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)


def test_large_float32_matrices_stay_float32() -> None:
    matrix = planted(60, 50, VALUES).float()
    assert decompose(matrix, rank=4, exact_up_to=10).left.dtype == torch.float32
    assert decompose(matrix).left.dtype == torch.float64
    assert torch.allclose(decompose(matrix, rank=4, exact_up_to=10).values[:4], torch.tensor(VALUES), rtol=1e-5)


def test_product_is_decomposed_without_being_made() -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(30, 4, generator=generator), torch.randn(4, 20, generator=generator)
    found, dense = decompose_product(up, down, 0.5), decompose(0.5 * up.double() @ down.double())
    assert len(found.values) == 4
    assert torch.allclose(found.values, dense.values[:4])
    assert found.energy == pytest.approx(dense.energy)
    assert torch.allclose((found.left * found.values) @ found.right, 0.5 * up.double() @ down.double())
    assert torch.allclose(found.left.mT @ found.left, torch.eye(4, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
def test_leading_triplets_are_those_of_the_whole(shape: tuple[int, int]) -> None:
    matrix = planted(*shape, VALUES)
    found, whole = leading(matrix, 3), decompose(matrix)
    assert torch.allclose(found.values, whole.values[:3])
    assert torch.allclose((found.left.mT @ whole.left[:, :3]).abs(), torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(
        (found.left * found.values) @ found.right, whole.left[:, :3] * whole.values[:3] @ whole.right[:3]
    )
    assert (found.energy, found.is_exact) == (whole.energy, False)
    assert leading(matrix, 99).is_exact
    sketched = leading(matrix, 2, exact_up_to=4)
    assert torch.allclose(sketched.values, whole.values[:2])
    assert len(leading(torch.zeros(shape), 2).values) == 2


def test_values_alone_are_the_same() -> None:
    matrix = planted(12, 7, VALUES)
    found, whole = decompose(matrix, vectors=False), decompose(matrix)
    assert torch.allclose(found.values, whole.values, atol=1e-12)
    assert (found.left.shape, found.right.shape, found.shape) == ((12, 0), (0, 7), (12, 7))
    assert found.energy == whole.energy


def test_ranks_of_known_spectra() -> None:
    found = decompose(planted(12, 7, VALUES))
    assert stable_rank(found) == pytest.approx(85 / 64)
    shares = [value / 15 for value in VALUES]
    assert entropy_rank(found) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert [rank_for_energy(found, share) for share in (0.5, 64 / 85, 0.76, 0.9, 0.95, 0.999, 1.0)] == [
        1, 1, 2, 2, 3, 4, 4,
    ]  # fmt: skip
    assert numerical_rank(found) == 4
    equal = decompose(planted(9, 9, [3.0] * 5))
    assert stable_rank(equal) == pytest.approx(5)
    assert entropy_rank(equal) == pytest.approx(5)
    assert rank_for_energy(equal, 0.9) == 5


def test_zero_has_no_rank() -> None:
    found = decompose(torch.zeros(5, 3))
    assert (stable_rank(found), entropy_rank(found), rank_for_energy(found), numerical_rank(found)) == (0, 0, 0, 0)
    assert found.left.shape == (5, 3)
    assert found.right.shape == (3, 3)


def test_refusals() -> None:
    with pytest.raises(StateError, match="NaN or inf"):
        decompose(torch.full((2, 2), math.nan))
    with pytest.raises(StateError, match="no singular values"):
        decompose(torch.zeros(3))
    with pytest.raises(StateError, match="no singular values"):
        decompose(torch.zeros(3, 3, dtype=torch.int32))
    with pytest.raises(StateError, match="share of energy is 0"):
        rank_for_energy(decompose(torch.ones(2, 2)), 0)
    with pytest.raises(StateError, match=r"the 1 triplets hold 75\.3%"):
        rank_for_energy(decompose(planted(12, 7, VALUES)).cut(1), 0.9)
    with pytest.raises(StateError, match="NaN or inf"):
        decompose_product(torch.full((2, 1), math.inf), torch.ones(1, 2))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.floats(1e-6, 1e6))
def test_rotations_change_nothing_and_scale_only_size(rows: int, columns: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    turned = scale * orthogonal(rows, seed) @ matrix @ orthogonal(columns, seed + 1)
    one, other = decompose(matrix), decompose(turned)
    assert torch.allclose(one.values * scale, other.values, rtol=1e-8, atol=1e-12 * scale)
    for rank in (stable_rank, entropy_rank):
        assert rank(one) == pytest.approx(rank(other), rel=1e-8)
        assert 1 - 1e-9 <= rank(one) <= min(rows, columns) + 1e-9
    assert stable_rank(one) <= entropy_rank(one) + 1e-9
    assert numerical_rank(one) == numerical_rank(other)
    assert rank_for_energy(one, 0.5) == rank_for_energy(other, 0.5)
    assert rank_for_energy(one, 0.3) <= rank_for_energy(one, 0.8) <= min(rows, columns)
