"""Directions that runs keep, and what they share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from synthetic import make_directions, make_study

from surgery.spectra import Decomposition, Directions, overlap
from surgery.study.cells import Cell, final_cells
from surgery.study.overlaps import FOLDER, keep_directions, subspace_overlaps, unreadable_directions


def cells_of(which: str, seeds: int = 3) -> list[Cell]:
    study = make_study(seeds, grid=False, weights=which)
    return final_cells(study, {name: arm.learning_rate[0] for name, arm in study.arms.items()})


def keep(cells: list[Cell], folder: Path) -> None:
    for cell in cells:
        if cell.weights:
            keep_directions(make_directions(cell), cell, folder)


def test_arms_are_compared_on_one_seed_and_seeds_with_the_first(tmp_path: Path) -> None:
    cells = cells_of("all")
    keep(cells, tmp_path)
    found = subspace_overlaps(cells, tmp_path)
    assert {(one.first, one.first_seed, one.second, one.second_seed) for one in found} == {
        ("full", 1, "lora", 1), ("full", 1, "full", 2), ("full", 1, "full", 3), ("lora", 1, "lora", 2), ("lora", 1, "lora", 3),
    }  # fmt: skip
    assert subspace_overlaps(cells, tmp_path) == found
    for one in found:
        assert one.matrices == 3
        assert (one.expected_input, one.expected_output) == pytest.approx((8 / 24, 8 / 24))
        # Four of eight directions are shared; the others are random among the rest.
        assert 0.5 < one.input < 0.8
        assert abs(one.random_input - 8 / 24) < 0.15


def test_one_seed_of_weights_compares_arms_alone(tmp_path: Path) -> None:
    cells = cells_of("first")
    keep(cells, tmp_path)
    (one,) = subspace_overlaps(cells, tmp_path)
    assert (one.first, one.second, one.first_seed) == ("full", "lora", 1)


def test_equal_changes_overlap_wholly_and_are_what_spectra_say(tmp_path: Path) -> None:
    full, lora = (next(c for c in cells_of("first") if c.arm == arm and c.weights) for arm in ("full", "lora"))
    drawn = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(12, 2, generator=drawn, dtype=torch.float64))[0] for _ in range(2))
    one = Directions("w", "mlp.up", "decoder", None, None, Decomposition(left, torch.tensor([2.0, 1.0]), right.mT, 5.0))
    other = Directions(
        "w", "mlp.up", "decoder", None, None, Decomposition(right, torch.tensor([2.0, 1.0]), right.mT, 5.0)
    )
    keep_directions({"w": one}, full, tmp_path)
    keep_directions({"w": other}, lora, tmp_path)
    (found,) = subspace_overlaps([full, lora], tmp_path)
    assert found.input == pytest.approx(1, abs=1e-5)
    assert found.output == pytest.approx(overlap(one.found, other.found, 2, 2, "left"), abs=1e-5)


def test_runs_that_kept_nothing_have_no_overlaps(tmp_path: Path) -> None:
    cells = cells_of("all")
    assert subspace_overlaps(cells, tmp_path) == ()
    for cell in cells:
        keep_directions({}, cell, tmp_path)  # bias-only changes no matrix
    assert subspace_overlaps(cells, tmp_path) == ()
    assert len(list((tmp_path / FOLDER).iterdir())) == len(cells)


def test_directions_that_cannot_be_read_are_left_out_and_told(tmp_path: Path) -> None:
    cells = cells_of("all")
    keep(cells, tmp_path)
    whole = subspace_overlaps(cells, tmp_path)
    paths = sorted((tmp_path / FOLDER).glob("lora-*.safetensors"))[:3]
    with safe_open(paths[2], framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        told = file.metadata()
    texts = [
        b"\x00" * 64,
        b"",
        save(tensors),
        save(tensors, {"matrices": "[" * 100_000}),
        save(tensors, {"matrices": told["matrices"].replace('"energy"', '"force"')}),
        save({name: tensor * float("nan") for name, tensor in tensors.items()}, told),
        save({name: tensor[..., :1].contiguous() for name, tensor in tensors.items()}, told),
        save({name: tensor for name, tensor in tensors.items() if not name.startswith("0.")}, told),
    ]
    for text in texts:
        paths[2].write_bytes(text)
        found = subspace_overlaps(cells, tmp_path)
        assert 0 < len(found) < len(whole)
        assert set(found) <= set(whole)
        assert unreadable_directions(cells, tmp_path) == (paths[2].name,)
    paths[2].unlink()
    assert unreadable_directions(cells, tmp_path) == ()
    paths[2].symlink_to("/dev/zero")
    assert unreadable_directions(cells, tmp_path) == (paths[2].name,)
