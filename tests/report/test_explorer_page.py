"""The page of `surgery inspect --html` as a file: safe, self-contained, whole or not there."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import StateError
from surgery.planning import Outline, anatomy, outline
from surgery.planning.inventory import Inventory, ParameterEntry
from surgery.planning.make import Anatomy
from surgery.planning.sites import sites_of
from surgery.registry import load_registry
from surgery.report.explorer import build_page, check_page, write_page

REGISTRY = load_registry()
HOSTILE = "</script><script>alert(1)</script><!--<script>"


def outlined(*names: str, model_type: str = "toy") -> Outline:
    entries = tuple(ParameterEntry(name, "weight", (4, 4), "float32", "linear") for name in names)
    found = Inventory(model_type, "Toy<b>&", "headers", entries)
    described = anatomy(found, REGISTRY)
    return outline(found, sites_of(found, described.architecture), described)


def embedded(page: str) -> Any:
    """The data of a page, as a browser's parser delimits it."""

    class Reader(HTMLParser):
        text = ""
        scripts: list[str]

        def __init__(self) -> None:
            super().__init__()
            self.scripts = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "script":
                self.scripts.append("")

        def handle_data(self, data: str) -> None:
            if self.scripts and self.cdata_elem == "script":
                self.scripts[-1] += data

    reader = Reader()
    reader.feed(page)
    assert len(reader.scripts) == 2
    return json.loads(reader.scripts[0])


def test_hostile_names_stay_data() -> None:
    page = build_page(outlined(HOSTILE, "a & b", "\u2028\ud800", model_type=HOSTILE), REGISTRY)
    rows = [row for group in embedded(page)["groups"] for row in group["rows"]]
    assert [row["inside"] for row in rows] == [f"{HOSTILE}.weight", "a & b.weight", "\u2028\ud800.weight"]
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert page.count("<!--") == 0
    assert "<h1>Toy&lt;b&gt;&amp;</h1>" in page
    page.encode("utf-8")


def test_nothing_but_its_own_script_and_style_may_run() -> None:
    page = build_page(outlined("a"), REGISTRY)
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert " style=" not in page
    assert all(source.startswith(("#", "data:")) for source in re.findall(r'(?:src|href)="([^"]*)"', page))


def test_every_label_has_its_field_and_every_field_its_label() -> None:
    page = build_page(outlined("a"), REGISTRY)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    labelled = set(re.findall(r'<label for="([^"]+)"', page))
    assert labelled == {"role", "target", "layers", "adapter", "tied"}
    named = re.findall(r'aria-(?:describedby|labelledby)="([^"]+)"', page)
    assert {*labelled, *named} <= set(ids)


def test_layers_that_look_alike_stand_once_in_the_data() -> None:
    names = [f"m.layers.{layer}.{name}_proj" for layer in range(60) for name in ("self_attn.q", "self_attn.k")]
    one, many = build_page(outlined(*names[:2]), REGISTRY), build_page(outlined(*names), REGISTRY)
    assert len(many) < len(one) + 1000
    groups = embedded(many)["groups"]
    assert [(group["layers"], len(group["rows"])) for group in groups] == [([*range(60)], 2)]


def test_equal_models_give_equal_pages() -> None:
    assert build_page(outlined("a", "b"), REGISTRY) == build_page(outlined("a", "b"), REGISTRY)


def test_options_that_must_be_given_are_written_out() -> None:
    adapters = {
        adapter["name"]: adapter["options"] for adapter in embedded(build_page(outlined("a"), REGISTRY))["adapters"]
    }
    rank = next(option for option in adapters["lora"] if option["name"] == "rank")
    assert rank == {"name": "rank", "value": "2", "required": True, "given": True, "description": "rank of the update"}
    others = {option["name"]: option["value"] for option in adapters["lora"] if not option["given"]}
    assert others["init"] == "kaiming"
    assert others["bias"] == "false"
    assert adapters["full"] == []


def test_a_file_is_not_replaced_unasked_and_never_where_it_is_no_page(tmp_path: Path) -> None:
    path, shown = tmp_path / "page.html", outlined("a")
    write_page(path, shown, REGISTRY)
    first = path.read_bytes()
    with pytest.raises(StateError, match="exists already"):
        write_page(path, shown, REGISTRY)
    write_page(path, outlined("b"), REGISTRY, overwrite=True)
    assert path.read_bytes() != first
    path.write_bytes(b"\x00" * 8000)
    with pytest.raises(StateError, match="no page of surgery"):
        check_page(path, overwrite=True)
    with pytest.raises(StateError, match="a folder"):
        check_page(tmp_path, overwrite=True)
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StateError, match="exists already"):
        check_page(link)


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_page(tmp_path / "page.html", outlined("a"), REGISTRY)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_parameters_has_a_page() -> None:
    empty = outline(Inventory(None, "", "model", ()), (), Anatomy(None, ""))
    assert embedded(build_page(empty, REGISTRY))["groups"] == []
