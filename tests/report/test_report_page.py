"""The page: self-contained, complete, the same for the same results."""

from __future__ import annotations

import csv
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from synthetic import make_study

from surgery.errors import StateError
from surgery.report import build_report
from surgery.report import numbers as of
from surgery.study import Comparison
from surgery.study.spec import load_study

if TYPE_CHECKING:
    from conftest import Finish


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    return build_report(comparison.folder).read_text(encoding="utf-8")


def words(page: str) -> str:
    """Return the text of a page as a reader sees it."""
    text = re.sub(r"<style>.*?</style>|<title.*?</title>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def test_every_number_of_every_csv_file_stands_in_the_report(comparison: Comparison, page: str) -> None:
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", page)
    shown = {html.unescape(cell) for cell in cells}
    files = sorted((comparison.folder / "tables").glob("*.csv"))
    assert [path.stem for path in files] == [
        "arms",
        "checks",
        "costs",
        "curves",
        "layers",
        "learning_rates",
        "loss_curves",
        "matrices",
        "overlaps",
        "readings",
        "runs",
        "search",
        "singular_values",
        "tradeoffs",
        "weights",
    ]
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                assert set(row) <= shown | {""}, path.name


def test_the_verdicts_come_first_then_table_plots_fairness_details(comparison: Comparison, page: str) -> None:
    places = [
        page.index(f'id="{name}"') for name in ("verdicts", "table", "plots", "weights", "costs", "fairness", "details")
    ]
    assert places == sorted(places)
    text = words(page)
    for told in comparison.sentences:
        assert told in text
    assert text.index(comparison.sentences[0]) < text.index("All arms")


def test_the_rows_that_every_study_has_are_there(page: str) -> None:
    main = page[page.index('id="table"') : page.index('id="plots"')]
    rows = re.findall(r'<th scope="row">.*?</span>(.*?)<', main)
    assert rows == ["full tuning", "LoRA, all linears, r=8", "bias only", "frozen + head", "majority class"]


def test_what_changed_in_the_weights_stands_beside_its_control(page: str) -> None:
    section = page[page.index('id="weights"') : page.index('id="fairness"')]
    parts = [row.partition("</tr>")[0] for row in section.split("<tr>")[2:]]
    rows = {row.split("</th>")[0].rpartition(">")[2]: words(row) for row in parts}
    # matrices, |dW|/|W|, rank, then figures with those of random changes: medians over six layers
    assert "6 5.6 % 384 96 random 192 194 random 346 129 random 193 0.04 random 0.04 0 random 0" in rows["full tuning"]
    assert "6 5.6 % 8 2 random 4 6.5 random 7.2 3 random 5" in rows["LoRA, all linears, r=8"]
    assert rows["bias only"].split()[2:] == ["0", *["–"] * 8]
    assert "on 5 seeds." in words(section)


def test_every_plot_has_a_title_a_caption_with_seeds_and_a_description(page: str) -> None:
    plots = re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL)
    names = [re.search(r'id="([^"]+)"', plot) for plot in plots]
    assert [name and name.group(1) for name in names] == [
        "difference",
        "rates",
        "curves",
        "tradeoff",
        "memory",
        "time",
        "forgetting",
        "norms",
        "ranks",
        "spectra",
        "overlaps",
    ]
    assert page.index('id="difference"') < page.index('id="table"') < page.index('id="rates"')
    for plot in plots:
        svgs = re.findall(r"<svg.*?</svg>", plot, flags=re.DOTALL)
        assert len(svgs) == max(1, plot.count('type="radio"'))
        for svg in svgs:
            assert re.match(r'<svg role="img" aria-labelledby="([a-z0-9-]+)-title" aria-describedby="\1-desc"', svg)
            assert re.search(r"<title id=.{10,}</title>", svg)
            assert re.search(r"<desc id=.{20,}</desc>", svg, flags=re.DOTALL)
        caption = re.search(r"<figcaption>(.*?)</figcaption>", plot)
        assert caption
        assert re.search(r"S = \d", caption.group(1))


def test_nothing_is_asked_of_a_network(page: str) -> None:
    assert "http:" not in page.replace("http://www.w3.org", "")
    assert "https:" not in page
    assert "<script" not in page
    assert "@import" not in page
    assert all(source.startswith(("#", "data:")) for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_no_id_is_used_twice_and_every_reference_is_there(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert set(used) <= set(ids)


def test_the_markup_is_balanced(page: str) -> None:
    open_tags: list[str] = []
    void = {"input", "meta", "link", "path", "use", "rect", "circle", "line", "br"}

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in void:
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in void:
                assert open_tags.pop() == tag

    Checker().feed(page)
    assert open_tags == []


def test_equal_results_give_an_equal_report(comparison: Comparison, page: str) -> None:
    assert build_report(comparison.folder).read_text(encoding="utf-8") == page


def test_what_a_user_writes_cannot_become_markup(finish: Finish, tmp_path: Path) -> None:
    arms = {
        "full": {"rules": [{"role": ".*", "adapter": "full"}], "learning_rate": 1e-4, "label": "<b>$\\x_1$ & co</b>"},
        "lora": {"rules": [{"role": ".*", "adapter": "lora"}], "learning_rate": 1e-3, "label": "<script>1</script>"},
    }
    comparison = finish(tmp_path / "study", make_study(3, arms=arms))
    text = build_report(comparison.folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text
    assert "unswept" in text
    assert 'id="rates"' not in text  # nothing was swept


def test_a_red_line_is_told_first(finish: Finish, tmp_path: Path) -> None:
    comparison = finish(tmp_path / "study", make_study(3))
    path = comparison.folder / "results.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[-1])
    record["hashes"]["head"] = "f" * 64
    path.write_text("\n".join([*lines[:-1], json.dumps(record)]) + "\n")
    again = finish(tmp_path / "study", make_study(3))
    text = build_report(again.folder).read_text(encoding="utf-8")
    assert 'role="alert"' in text
    assert "No verdict can be given" in text
    assert 'class="word worse"' not in text


def test_one_seed_is_reported_without_bands_or_intervals(finish: Finish, tmp_path: Path) -> None:
    comparison = finish(tmp_path / "study", make_study(1))
    text = words(build_report(comparison.folder).read_text(encoding="utf-8"))
    assert "says nothing about training noise" in text
    assert "McNemar" in text
    assert "S = 1 seed," in text


def test_a_folder_without_a_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no finished study"):
        build_report(tmp_path)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (of.rate(3e-5), "3e-5"),
        (of.rate(1e-2), "0.01"),
        (of.rate(2.5e-4), "2.5e-4"),
        (of.size(1536), "1.5 KiB"),
        (of.size(0), "0 B"),
        (of.size(90_264_000), "86.1 MiB"),
        (of.size(None), "–"),
        (of.percent(0.014702), "1.47 %"),
        (of.percent(1.0001), "100 %"),
        (of.percent(0.0), "0 %"),
        (of.milliseconds(0.21), "210"),
        (of.milliseconds(0.00123), "1.23"),
        (of.tiny(1.94e-6), "1.9e-6"),
        (of.tiny(0.0), "0"),
        (of.count(331776), "331,776"),
        (of.loss(1.23456), "1.235"),
    ],
)
def test_numbers_as_people_read_them(told: str, expected: str) -> None:
    assert told == expected


def test_the_study_on_the_page_can_be_run_again(comparison: Comparison, page: str, tmp_path: Path) -> None:
    match = re.search(r"The study as it was run</summary><pre[^>]*>(.*?)</pre>", page, flags=re.DOTALL)
    assert match
    path = tmp_path / "again.yaml"
    path.write_text(html.unescape(match[1]), encoding="utf-8")
    again = load_study(path)
    assert again == comparison.study
    assert list(again.arms) == ["full", "lora", "bias"]
    assert path.read_text("utf-8").startswith("version: 1\nname: docstring-chapters\nmodel:")
    assert "dtype" not in path.read_text("utf-8")
