"""One page over several studies."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from headless import NEEDS_BROWSER, drive
from synthetic import make_study

from surgery.errors import StateError
from surgery.report import build_across, build_report
from surgery.report.across import across, across_view
from surgery.report.canvas import canvas
from surgery.report.plots.forest import forest
from surgery.study import Comparison

if TYPE_CHECKING:
    from conftest import Finish


@pytest.fixture(scope="module")
def other(finish: Finish, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A study of two arms and three seeds, with another margin."""
    arms = dict(make_study(3, grid=False).arms)
    kept = {name: arms[name] for name in ("full", "lora")}
    return finish(
        tmp_path_factory.mktemp("across") / "two",
        make_study(3, arms=kept, name="two-arms", margin=0.05, weights="none"),
    )


@pytest.fixture(scope="module")
def page(comparison: Comparison, other: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_across([comparison.folder, other.folder], tmp_path_factory.mktemp("page") / "both.html")[0]


def test_every_arm_of_every_study_has_a_cell_and_a_line(comparison: Comparison, other: Comparison, page: Path) -> None:
    found = across([comparison.folder, other.folder])
    view = across_view(found, "both")
    assert view.columns == ("full tuning", "LoRA, all linears, r=8", "bias only", "frozen + head")
    assert [row.label for row in view.rows] == ["docstring-chapters", "two-arms"]
    assert [bool(cell.text) for cell in view.rows[1].cells] == [True, True, False, True]
    with page.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["study"], line["arm"]) for line in lines] == [
        *(("docstring-chapters", arm) for arm in ("full", "lora", "bias", "frozen", "majority")),
        *(("two-arms", arm) for arm in ("full", "lora", "frozen", "majority")),
    ]
    lora = other.summary.row("lora")
    assert lora.verdict and lora.pair
    assert lines[6]["verdict"] == lora.verdict.word
    assert float(lines[6]["difference"]) == pytest.approx(lora.pair.difference, rel=1e-6)
    text = page.read_text(encoding="utf-8")
    for line in lines:
        assert f"<td>{line['difference']}</td>" in text


def test_a_column_is_an_arm_whatever_its_label(finish: Finish, comparison: Comparison, tmp_path: Path) -> None:
    arms = {name: arm.model_dump() for name, arm in make_study(3, grid=False).arms.items()}
    arms["lora"]["label"], arms["bias"]["label"] = "bias only", "every bias"
    folder = finish(tmp_path / "swapped", make_study(3, name="swapped", arms=arms)).folder
    view = across_view(across([comparison.folder, folder]), "both")
    assert view.columns == ("full tuning", "lora", "bias", "frozen + head")
    assert [cell.notes[0] for cell in (view.rows[0].cells[1], view.rows[1].cells[1])] == [
        "LoRA, all linears, r=8",
        "bias only",
    ]
    del arms["bias"]
    arms["narrow"] = {**arms.pop("lora"), "label": "LoRA, all linears, r=8"}
    folder = finish(tmp_path / "renamed", make_study(3, name="renamed", arms=arms)).folder
    view = across_view(across([comparison.folder, folder]), "both")
    assert view.columns[1] == "LoRA, all linears, r=8 (lora)"
    assert view.columns[-1] == "LoRA, all linears, r=8 (narrow)"
    assert not view.rows[1].cells[1].text


def test_each_group_of_the_forest_has_its_own_margin(comparison: Comparison, other: Comparison) -> None:
    drawing = forest(across([comparison.folder, other.folder]), "both")
    assert drawing is not None
    with canvas(drawing.width, drawing.height) as (_, axes):
        drawing.views[0].draw(axes)
        widths = [zone.get_paths()[0].get_extents().width for zone in axes.collections]
        assert widths == pytest.approx([2, 10])
        assert len(axes.get_yticks()) == 3
    assert "docstring-chapters: S = 5, n = 200; two-arms: S = 3, n = 200" in drawing.caption


def test_the_page_is_whole(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    assert "https:" not in text
    assert "<script" not in text
    assert "<desc id=" in text


def test_studies_of_other_metrics_are_refused(finish: Finish, comparison: Comparison, tmp_path: Path) -> None:
    import json

    folder = finish(tmp_path / "loss", make_study(3, name="losses")).folder
    told = json.loads((folder / "summary.json").read_text())
    told["metric"] = {"name": "loss", "greater_is_better": False}
    (folder / "summary.json").write_text(json.dumps(told))
    with pytest.raises(StateError) as caught:
        build_across([comparison.folder, folder], tmp_path / "page.html")
    said = str(caught.value)
    assert "cannot share a column" in said
    assert f"{comparison.folder}: its metric is accuracy" in said
    assert f"{folder}: its metric is loss" in said
    assert "write another page" in said
    assert not (tmp_path / "page.html").exists()


def test_one_study_twice_is_refused(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="hold the same study"):
        build_across([comparison.folder, comparison.folder], tmp_path / "page.html")


def test_a_page_takes_no_strangers_place(comparison: Comparison, other: Comparison, tmp_path: Path) -> None:
    folders = [comparison.folder, other.folder]
    stranger = tmp_path / "mine.html"
    stranger.write_text("<p>mine</p>")
    with pytest.raises(StateError, match="no report"):
        build_across(folders, stranger)
    (tmp_path / "new.csv").write_text("a,b\n")
    with pytest.raises(StateError, match="numbers would take the place"):
        build_across(folders, tmp_path / "new.html")
    with pytest.raises(StateError, match=r"no \.html file"):
        build_across(folders, tmp_path)
    path, _ = build_across(folders, tmp_path / "ok.html")
    assert build_across(folders, path)[0].read_bytes() == path.read_bytes()
    assert stranger.read_text() == "<p>mine</p>"


def test_a_page_written_again_leaves_numbers_that_are_not_its_own(
    comparison: Comparison, other: Comparison, tmp_path: Path
) -> None:
    folders = [comparison.folder, other.folder]
    page = build_report(comparison.folder, tmp_path / "notes.html")
    numbers = tmp_path / "notes.csv"
    numbers.write_text("when,what\nmonday,slept\n")
    before = page.read_bytes()
    with pytest.raises(StateError, match="numbers would take the place"):
        build_across(folders, page)
    assert numbers.read_text() == "when,what\nmonday,slept\n"
    assert page.read_bytes() == before
    assert build_report(comparison.folder, page).read_bytes() == before


def test_a_page_takes_no_place_among_a_studys_files(comparison: Comparison, other: Comparison) -> None:
    folders = [comparison.folder, other.folder]
    own = build_report(comparison.folder)
    before = own.read_bytes()
    for place in (own, comparison.folder / "both.html", comparison.folder / "tables" / "both.html"):
        with pytest.raises(StateError, match="among the files of the study"):
            build_across(folders, place)
    with pytest.raises(StateError, match="among the files of the study"):
        build_report(other.folder, own)
    assert build_report(comparison.folder, own).read_bytes() == before
    assert not (comparison.folder / "both.html").exists()


@NEEDS_BROWSER
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1440])
def test_it_fits_a_phone_and_a_desk(tmp_path: Path, page: Path, width: int, dark: bool) -> None:
    text = page.read_text(encoding="utf-8").replace("<details", "<details open")
    text = text.replace("@media (prefers-color-scheme: dark)", "@media all") if dark else text
    assert drive(tmp_path, text, "return page.querySelectorAll('svg').length", width=width) == 1
