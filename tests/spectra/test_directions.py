"""Overlap of subspaces, intruder dimensions, and the random change that stands beside them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import orthogonal, planted

from surgery.errors import StateError
from surgery.spectra import decompose, expected_overlap, intruders, overlap, overlaps, random_change

SIZE = 24


def _of(directions: torch.Tensor, values: list[float]) -> torch.Tensor:
    """A square matrix with these left and right singular vectors."""
    return (directions * torch.tensor(values, dtype=torch.float64)) @ directions.mT


def test_equal_and_orthogonal_subspaces() -> None:
    basis = orthogonal(SIZE, 0)
    one, same = decompose(_of(basis[:, :4], [4.0, 3.0, 2.0, 1.0])), decompose(_of(basis[:, :4], [1.0, 2.0, 3.0, 4.0]))
    other = decompose(_of(basis[:, 4:8], [4.0, 3.0, 2.0, 1.0]))
    for side in ("left", "right"):
        assert overlap(one, one, 3, 3, side) == pytest.approx(1)  # type: ignore[arg-type]
        assert overlap(one, same, 4, 4, side) == pytest.approx(1)  # type: ignore[arg-type]
        assert overlap(one, same, 2, 2, side) == pytest.approx(0, abs=1e-12)  # type: ignore[arg-type]
        assert overlap(one, other, 4, 4, side) == pytest.approx(0, abs=1e-12)  # type: ignore[arg-type]
    assert overlap(one, same, 1, 4) == pytest.approx(1)  # a subspace of the other


def test_half_of_the_directions_is_half() -> None:
    basis = orthogonal(SIZE, 0)
    one = decompose(_of(basis[:, :4], [4.0, 3.0, 2.0, 1.0]))
    half = decompose(_of(basis[:, [0, 1, 10, 11]], [4.0, 3.0, 2.0, 1.0]))
    assert overlap(one, half, 4, 4) == pytest.approx(0.5)
    chart = overlaps(one, half, 4, 4)
    assert chart.shape == (4, 4)
    assert chart[1, 3] == pytest.approx(1)
    assert chart[3, 3] == pytest.approx(0.5)


def test_sides_are_input_and_output() -> None:
    left, right, other = orthogonal(SIZE, 0)[:, :3], orthogonal(30, 1)[:, :3], orthogonal(30, 1)[:, 3:6]
    values = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    one, two = decompose((left * values) @ right.mT), decompose((left * values) @ other.mT)
    assert overlap(one, two, 3, 3, "left") == pytest.approx(1)
    assert overlap(one, two, 3, 3, "right") == pytest.approx(0, abs=1e-12)


def test_projection_metric_of_the_paper() -> None:
    """phi = 1 - d^2 / p with d^2 = p - sum of squared cosines: the distance of the two projections, halved."""
    one, two = (decompose(planted(SIZE, SIZE, [3.0, 2.0, 1.0], seed)) for seed in (0, 5))
    first, second = (found.right[:3].mT @ found.right[:3] for found in (one, two))
    squared = float((first - second).square().sum()) / 2
    assert overlap(one, two, 3, 3) == pytest.approx(1 - squared / 3)


def test_random_subspaces_overlap_as_expected() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [decompose(random_change((SIZE, SIZE), 1.0, generator)) for _ in range(40)]
    values = [overlap(one, two, 3, 6) for one, two in zip(drawn[::2], drawn[1::2], strict=True)]
    mean = sum(values) / len(values)
    assert expected_overlap(SIZE, 3, 6) == 0.25
    assert mean == pytest.approx(0.25, abs=0.04)


def test_refused_overlaps() -> None:
    small, large = decompose(torch.eye(3)), decompose(torch.eye(4))
    with pytest.raises(StateError, match="nothing to overlap in"):
        overlap(small, large, 1, 1)
    with pytest.raises(StateError, match="4 directions of 3 are asked for"):
        overlap(small, small, 4, 1)
    with pytest.raises(StateError, match="0 directions"):
        overlap(small, small, 0, 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 5), st.floats(1e-3, 1e3))
def test_overlap_is_symmetric_and_knows_no_scale_nor_rotation(seed: int, i: int, j: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, two = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    turn, other = orthogonal(7, seed), orthogonal(5, seed)
    a, b = decompose(one), decompose(two)
    turned = [decompose(scale * turn @ matrix @ other) for matrix in (one, two)]
    for side in ("left", "right"):
        value = overlap(a, b, i, j, side)  # type: ignore[arg-type]
        assert -1e-12 <= value <= 1 + 1e-12
        assert value == pytest.approx(overlap(b, a, j, i, side))  # type: ignore[arg-type]
        assert value == pytest.approx(overlap(*turned, i, j, side), abs=1e-7)  # type: ignore[arg-type]


BASIS = orthogonal(SIZE, 7)
STRENGTHS = 5 / 1.6 ** torch.arange(SIZE, dtype=torch.float64)
"""Far enough from one another that a change of one direction does not mix the others."""
BASE = (BASIS * STRENGTHS) @ orthogonal(SIZE, 8)


def _spread(count: int) -> torch.Tensor:
    """`count` directions, orthogonal to one another, that share little with each of the base's."""
    waves = torch.fft.fft(torch.eye(SIZE, dtype=torch.complex128)).real[:, 1 : count + 1]
    return BASIS @ (waves / waves.norm(dim=0))


def test_planted_intruders_are_found() -> None:
    new = _spread(2)
    cosines = (BASIS.mT @ new).abs().amax(0)
    assert float(cosines.max()) < 0.4
    tuned = BASE + (new * torch.tensor([60.0, 50.0], dtype=torch.float64)) @ orthogonal(SIZE, 9)[:2]
    after = decompose(tuned)
    found = intruders(decompose(BASE), after)
    assert (found.count, found.undecided, found.looked_at, found.epsilon) == (2, 0, 10, 0.5)
    assert found.energy == pytest.approx(float(after.values[:2].square().sum() / after.values.square().sum()))
    assert max(found.cosines[:2]) < 0.5 <= min(found.cosines[2:])


def test_nothing_new_is_no_intruder() -> None:
    base = decompose(BASE)
    for tuned in (BASE, 3 * BASE, BASE + 1e-3 * planted(SIZE, SIZE, [1.0] * 5)):
        assert intruders(base, decompose(tuned)).count == 0
    # The base's own directions in another order are none, either.
    turned = (BASIS.flip(1) * STRENGTHS) @ orthogonal(SIZE, 8)
    assert intruders(base, decompose(turned)).count == 0
    assert intruders(base, decompose(turned)).energy == 0


def test_only_the_leading_vectors_are_looked_at() -> None:
    new = _spread(2)
    tuned = BASE + (new * torch.tensor([60.0, 50.0], dtype=torch.float64)) @ orthogonal(SIZE, 9)[:2]
    assert intruders(decompose(BASE), decompose(tuned), looked_at=1).count == 1
    assert len(intruders(decompose(BASE), decompose(tuned), looked_at=99).cosines) == SIZE


def test_epsilon_is_the_bound() -> None:
    """A direction at a known cosine: an intruder above it, none below."""
    mixed = 0.6 * BASIS[:, 0] + 0.8 * BASIS[:, 1]
    base = decompose((BASIS[:, :2] * torch.tensor([2.0, 1.0], dtype=torch.float64)) @ orthogonal(SIZE, 8)[:2])
    tuned = decompose(torch.outer(mixed, orthogonal(SIZE, 9)[0]))
    assert intruders(base, tuned, 1, 0.79).count == 0
    assert intruders(base, tuned, 1, 0.81).count == 1


def test_a_partly_known_base_leaves_open_what_it_cannot_say() -> None:
    base, part = decompose(BASE), decompose(BASE).cut(4)
    outside, inside = BASIS[:, 10], BASIS[:, 1]
    mixed = (BASIS[:, :4].sum(1)) / 2  # cosines of 1/2 with four known ones, nothing outside
    right = orthogonal(SIZE, 9)[0]
    for direction, whole, known in ((outside, 0, (0, 1)), (inside, 0, (0, 0)), (mixed, 1, (1, 0))):
        tuned = decompose(torch.outer(direction, right))
        assert intruders(base, tuned, 1, 0.51).count == whole
        found = intruders(part, tuned, 1, 0.51)
        assert (found.count, found.undecided) == known


def test_refused_intruders() -> None:
    with pytest.raises(StateError, match="3 and 4 rows"):
        intruders(decompose(torch.eye(3)), decompose(torch.eye(4)))
    with pytest.raises(StateError, match="a cosine of 0"):
        intruders(decompose(torch.eye(3)), decompose(torch.eye(3)), epsilon=0)


def test_random_change_has_norm_and_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    for rank in (None, 1, 3, 0, 99):
        drawn = random_change((20, 30), 2.5, generator, rank)
        assert drawn.shape == (20, 30)
        assert float(torch.linalg.vector_norm(drawn)) == pytest.approx(0 if rank == 0 else 2.5)
        assert int(torch.linalg.matrix_rank(drawn)) == (20 if rank in (None, 99) else rank)
    again = [random_change((4, 4), 1.0, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*again)
