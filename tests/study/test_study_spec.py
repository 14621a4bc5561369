"""The study file: strict, every problem at once, with its place."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from synthetic import make_study

from surgery.errors import SpecError
from surgery.study.cells import final_cells, tuning_cells
from surgery.study.spec import FROZEN, StudySpec, load_study

GOOD = """\
version: 1
name: demo
model: some/model
task: {kind: text-classification}
data: {train: train.csv, test: test.csv}
training: {steps: 60, batch_size: 16}
seeds: [1, 2, 3]
head: [{role: 'head\\..*', adapter: full}]
head_learning_rate: 5e-3
arms:
  full:
    rules: [{role: '.*', adapter: full}]
    learning_rate: [3e-5, 1e-4]
  small:
    label: Small one
    rules: [{role: 'attention\\..*', adapter: other, rank: 8}]
    learning_rate: 1e-3
reference: full
margin: 0.01
"""


def load(tmp_path: Path, text: str) -> StudySpec:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return load_study(path)


def problems(tmp_path: Path, text: str) -> str:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    return str(caught.value)


def test_one_learning_rate_is_a_grid_of_one(tmp_path: Path) -> None:
    study = load(tmp_path, GOOD)
    assert study.arms["small"].learning_rate == (1e-3,)
    assert not study.arms["small"].swept
    assert study.arms["full"].swept
    assert study.label("small") == "Small one"
    assert study.label(FROZEN) == "frozen + head"


@pytest.mark.parametrize(
    ("old", "new", "place", "what"),
    [
        ("reference: full", "reference: ful", "18:12  reference", "did you mean 'full'?"),
        ("steps: 60", "steps: 60, learning_rate: 1e-3", "6:38  training.learning_rate", "each arm has its own"),
        ("seeds: [1, 2, 3]", "seeds: [1, 2, 2]", "7:8  seeds", "names a seed twice"),
        ("seeds: [1, 2, 3]", "seeds: [0, 1, 2]", "7:8  seeds", "the tuning seed 0 is also a seed that is reported"),
        ("head_learning_rate: 5e-3\n", "", "", "'head_learning_rate' is missing"),
        ("name: demo", 'name: "demo\\n"', "2:7  name", ""),
        ("test: test.csv", "validation: v.csv", "5:1  data", "data.test: FILE"),
        ("margin: 0.01", "margin: 0", "19:9  margin", "greater than 0"),
        ("margin: 0.01", "margin: 0.01\nmargni: 1", "20:1  margni", "did you mean 'margin'?"),
        ("  small:", "  frozen:", "14:3  arms.frozen", "belongs to a row that every study has"),
        ("[3e-5, 1e-4]", "[1e-4, 1e-4]", "learning_rate", "names a learning rate twice"),
        ("[3e-5, 1e-4]", "[1, 1.0]", "learning_rate", "names a learning rate twice"),
        ("[3e-5, 1e-4]", "[]", "13:20  arms.full.learning_rate", ""),
        ("version: 1\n", "", "", "'version' is missing"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, old: str, new: str, place: str, what: str) -> None:
    assert old in GOOD
    told = problems(tmp_path, GOOD.replace(old, new))
    assert place in told
    assert what in told


def test_a_data_set_may_bring_its_own_test_split(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD.replace("{train: train.csv, test: test.csv}", "{name: demo:corpus}")).data.test is None


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = (
        GOOD.replace("reference: full", "reference: ful").replace("margin: 0.01", "margin: -1").replace("rank: 8}", "}")
    )
    told = problems(tmp_path, text.replace("label:", "lable:"))
    assert all(word in told for word in ("reference", "margin", "lable"))


def test_canonical_json_loads_back_to_an_equal_study(tmp_path: Path) -> None:
    study = load(tmp_path, GOOD)
    again = StudySpec.model_validate(json.loads(study.canonical_json()))
    assert again == study
    assert again.hash == study.hash
    assert pickle.loads(pickle.dumps(study)) == study


def test_every_arm_gets_the_same_head_and_its_own_rate() -> None:
    study = make_study(2)
    cells = final_cells(study, {"full": 1e-4, "lora": 1e-3, "bias": 3e-3})
    assert [cell.arm for cell in cells] == ["frozen", "full", "lora", "bias", "bias", "lora", "full", "frozen"]
    for cell in cells:
        assert cell.spec.rules[0] == study.head[0]
        training = cell.spec.training
        assert training is not None
        assert training.groups[0].learning_rate == 5e-3
        assert training.learning_rate == cell.rate
        assert cell.spec.seed == cell.seed


def test_cells_are_named_by_what_decides_their_result() -> None:
    study = make_study(3)
    keys = [
        cell.key for cell in (*tuning_cells(study), *final_cells(study, {"full": 1e-4, "lora": 1e-3, "bias": 3e-3}))
    ]
    assert len(set(keys)) == len(keys) == 9 + 12
    again = [cell.key for cell in tuning_cells(make_study(3))]
    assert again == keys[:9]
    changed: dict[str, Any] = {"training": {"steps": 241, "batch_size": 16, "evaluate_every": 40}}
    assert not set(again) & {cell.key for cell in tuning_cells(make_study(3, **changed))}
    # How often the base is drawn, or what difference matters, changes no run.
    assert again == [cell.key for cell in tuning_cells(make_study(3, margin=0.02, resamples=1000))]
    cell = tuning_cells(study)[0]
    assert pickle.loads(pickle.dumps(cell)).key == cell.key


def test_nothing_is_tuned_where_there_is_nothing_to_choose() -> None:
    assert tuning_cells(make_study(3, grid=False)) == []


def test_without_a_head_the_frozen_row_is_the_untouched_base() -> None:
    study = make_study(2, head=(), head_learning_rate=None)
    cells = final_cells(study, {"full": 1e-4, "lora": 1e-3, "bias": 3e-3})
    frozen = [cell for cell in cells if cell.arm == FROZEN]
    assert len(frozen) == 1
    assert not frozen[0].trains
    assert study.label(FROZEN) == "frozen (untouched base)"


@pytest.mark.parametrize(
    "labels",
    [("A", "A"), ("two", None), (None, "one"), ("x", "x "), ("Full", "full"), ("A\N{SUPERSCRIPT TWO}", "a2")],
    ids=ascii,
)
def test_two_arms_of_one_label(labels: tuple[str | None, str | None]) -> None:
    from surgery.study.spec import _label_lines

    arms = {name: {"label": label} for name, label in zip(("one", "two"), labels, strict=True)}
    (line,) = _label_lines(arms)
    assert "as is the arm" in str(line)
    assert _label_lines({"one": {}, "two": {"label": "A"}, "three": {"label": "B"}, "four": 5}) == []


@pytest.mark.parametrize("label", ["frozen + head", "Frozen  (untouched base)", " majority class"])
def test_a_label_of_a_row_that_every_study_has(tmp_path: Path, label: str) -> None:
    told = problems(tmp_path, GOOD.replace("label: Small one", f"label: {json.dumps(label)}"))
    assert "a row that every study can have" in str(told)


@pytest.mark.parametrize(
    "label", [" ", "a\nb", "\x1b[31mx", "\u202eabc", "a\u200b", "\x9b31m", "a\u2028b", "\x00", "\u3000"], ids=ascii
)
def test_a_label_that_cannot_be_read(label: str) -> None:
    from surgery.study.spec import _label_lines

    (line,) = _label_lines({"one": {"label": label}})
    assert "invisible characters" in str(line)
