"""What changed in the weights, as a study tells it."""

from __future__ import annotations

import pytest
from synthetic import make_matrix, make_records, make_study, make_summary

from surgery.study.cells import final_cells
from surgery.study.tables import tables
from surgery.study.weights import weight_medians


@pytest.mark.parametrize(("which", "seeds"), [("first", {1}), ("all", {1, 2, 3}), ("none", set())])
def test_study_says_whose_weights_are_looked_at(which: str, seeds: set[int]) -> None:
    study = make_study(3, grid=False, weights=which)
    rates = {name: arm.learning_rate[0] for name, arm in study.arms.items()}
    cells = final_cells(study, rates)
    assert {cell.seed for cell in cells if cell.weights} == seeds
    found = tables(make_summary(study, make_records(study)), make_records(study))  # type: ignore[arg-type]
    assert ("weights" in found, "matrices" in found) == (bool(seeds), bool(seeds))


def test_looking_is_part_of_what_a_cell_is() -> None:
    rates = dict.fromkeys(make_study().arms, 0.001)
    one, other = (
        {(cell.arm, cell.seed): cell.key for cell in final_cells(make_study(weights=which), rates)}
        for which in ("first", "all")
    )
    assert {seed for (arm, seed), key in one.items() if other[arm, seed] != key} == {2, 3, 4, 5}


def test_medians_and_every_matrix() -> None:
    study = make_study(3, grid=False, weights="all")
    records = make_records(study)
    row = weight_medians(records)["full"]  # type: ignore[arg-type]
    assert (row["matrices"], row["seeds"], row["rank"]) == (6, 3, 384)
    assert row["entropy_rank"] == 194.5
    assert row["random_entropy_rank"] == pytest.approx(345.6)
    assert row["relative_norm"] == pytest.approx(0.056)
    columns, rows = tables(make_summary(study, records), records)["matrices"]  # type: ignore[arg-type]
    assert len(rows) == 2 * 3 * 6
    assert dict(zip(columns, rows[0], strict=True))["random_stable_rank"] == "192"


def test_a_new_weight_has_no_relative_norm_and_hinders_no_median() -> None:
    matrices = [make_matrix(0, 8), {**make_matrix(1, 8), "relative_norm": None}]
    record = {"arm": "lora", "seed": 1, "weights": matrices}
    assert weight_medians([record])["lora"]["relative_norm"] == pytest.approx(0.016)  # type: ignore[list-item]
