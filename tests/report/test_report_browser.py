"""The page in a real browser: drawn, not blank, without overflow, errors or requests, narrow and wide, light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from headless import NEEDS_BROWSER, browse, drive, framed
from PIL import Image

from surgery.report import build_report
from surgery.study import Comparison

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def report(comparison: Comparison) -> Path:
    return build_report(comparison.folder)


@pytest.mark.parametrize("width", [400, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overflows_fails_or_is_fetched(tmp_path: Path, report: Path, width: int, dark: bool) -> None:
    # Everything unfolded: the tables behind the plots are the widest part. And every view of every plot.
    page = report.read_text(encoding="utf-8").replace("<details", "<details open")
    page = page.replace(".view { display: none; }", "")
    page = page.replace("@media (prefers-color-scheme: dark)", "@media all") if dark else page
    frame = framed(tmp_path, page, width, 9000)
    done = browse(tmp_path, frame, f"--window-size={max(width, 500)},2000", "--virtual-time-budget=3000", "--dump-dom")
    found = dict(re.findall(r'data-(width|height|requests)="(\d+)"', done.stdout))
    assert int(found["width"]) <= width
    assert int(found["height"]) > 2000
    assert found["requests"] == "0"
    assert "CONSOLE" not in done.stderr


def test_one_view_of_a_plot_is_seen_and_a_click_shows_another(tmp_path: Path, report: Path) -> None:
    script = """
      const figure = page.getElementById("curves");
      const seen = () => [...figure.querySelectorAll(".view")].map(one => view.getComputedStyle(one).display);
      const before = seen();
      figure.querySelectorAll(".tabs label")[1].click();
      return [before, seen(), [...figure.querySelectorAll(".tabs label")].map(one => one.textContent)];
    """
    before, after, labels = drive(tmp_path, report.read_text(encoding="utf-8"), script, width=400)
    assert before == ["block", "none", "none"]
    assert after == ["none", "block", "none"]
    assert labels == ["steps", "FLOPs", "CPU seconds"]


@pytest.mark.parametrize("width", [400, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_drawn(tmp_path: Path, report: Path, width: int, dark: bool) -> None:
    page = report.read_text(encoding="utf-8")
    if dark:
        assert "@media (prefers-color-scheme: dark)" in page
        page = page.replace("@media (prefers-color-scheme: dark)", "@media all")
    height = 3400 if width == 1440 else 9000
    picture = tmp_path / "page.png"
    frame = framed(tmp_path, page, width, height)
    browse(tmp_path, frame, f"--window-size={max(width, 500)},{height}", f"--screenshot={picture}")
    with Image.open(picture) as image:
        seen = image.convert("RGB").crop((0, 0, width, height))
    colours = seen.getcolors(1 << 24) or []
    assert len(colours) > 500
    background = max(colours)[1]
    assert isinstance(background, tuple)
    assert (sum(background) < 200) == dark
    # Every quarter of the page shows something besides its background.
    for quarter in range(4):
        part = seen.crop((0, quarter * height // 4, width, (quarter + 1) * height // 4))
        assert len(part.getcolors(1 << 24) or []) > 50
