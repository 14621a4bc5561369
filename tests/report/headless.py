"""A headless browser: pages drawn, measured and driven by a script of the test's own."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

__all__ = ["NEEDS_BROWSER", "browse", "drive", "framed"]

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_BROWSER = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")

# The page in a frame of a given width: headless windows cannot be made as narrow as a phone.
FRAME = """<!doctype html><body style="margin:0">
<iframe id="frame" srcdoc="{page}" style="width:{width}px;height:{height}px;border:0"></iframe>
<script>
frame.onload = async () => {{
  const view = frame.contentWindow, page = frame.contentDocument;
  let result;
  try {{
    result = await (async () => {{ {script} }})();
  }} catch (error) {{
    result = {{broken: String(error && error.stack || error)}};
  }}
  document.body.dataset.width = page.documentElement.scrollWidth;
  document.body.dataset.height = page.documentElement.scrollHeight;
  document.body.dataset.requests = view.performance.getEntriesByType("resource").length;
  document.body.dataset.result = JSON.stringify(result === undefined ? null : result);
}};
</script>"""


def browse(tmp_path: Path, page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the browser on a page."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", *arguments, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def framed(tmp_path: Path, page: str, width: int, height: int, script: str = "") -> Path:
    """Return a page that shows `page` in a frame, and runs `script` when it is loaded."""
    path = tmp_path / f"frame-{width}.html"
    path.write_text(FRAME.format(page=html.escape(page), width=width, height=height, script=script), encoding="utf-8")
    return path


def drive(tmp_path: Path, page: str, script: str, *, width: int = 1280, height: int = 2000) -> Any:
    """Return what `script` returns, which sees the page as `page` and its window as `view`.

    The script fails the test when it throws, and so does a page that complains or asks a network.
    """
    frame = framed(tmp_path, page, width, height, script)
    size = f"--window-size={max(width, 500)},{height}"
    done = browse(tmp_path, frame, size, "--virtual-time-budget=20000", "--dump-dom")
    found = dict(re.findall(r'data-(width|height|requests|result)="([^"]*)"', done.stdout))
    assert "CONSOLE" not in done.stderr, done.stderr
    assert found["requests"] == "0"
    assert int(found["width"]) <= width
    result = json.loads(html.unescape(found["result"]))
    assert not (isinstance(result, dict) and "broken" in result), result
    return result
