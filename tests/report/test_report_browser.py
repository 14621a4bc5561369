"""The page in a real browser: drawn, not blank, without overflow, errors or requests, narrow and wide, light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from headless import NEEDS_BROWSER, browse, framed
from PIL import Image

from surgery.report import build_report
from surgery.study import Comparison

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def report(comparison: Comparison) -> Path:
    return build_report(comparison.folder)


@pytest.mark.parametrize("width", [400, 1440])
def test_nothing_overflows_fails_or_is_fetched(tmp_path: Path, report: Path, width: int) -> None:
    # Everything unfolded: the tables behind the plots are the widest part.
    page = report.read_text(encoding="utf-8").replace("<details", "<details open")
    frame = framed(tmp_path, page, width, 9000)
    done = browse(tmp_path, frame, f"--window-size={max(width, 500)},2000", "--virtual-time-budget=3000", "--dump-dom")
    found = dict(re.findall(r'data-(width|height|requests)="(\d+)"', done.stdout))
    assert int(found["width"]) <= width
    assert int(found["height"]) > 2000
    assert found["requests"] == "0"
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize("width", [400, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_drawn(tmp_path: Path, report: Path, width: int, dark: bool) -> None:
    page = report.read_text(encoding="utf-8")
    if dark:
        assert "@media (prefers-color-scheme: dark)" in page
        page = page.replace("@media (prefers-color-scheme: dark)", "@media all")
    height = 3000 if width == 1440 else 8000
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
