"""Reading files: positions, YAML 1.2 scalars, JSON, and everything hostile, each within a second."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import SpecError
from surgery.spec import Catalog, load_document, load_spec, parse_spec

HEAD = "version: 1\nname: a\nrules:\n"
ROOM = 256 * 1024 - 200


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0", 0),
        ("+7", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("", None),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ('"true"', "true"),
        ('"\\U0001F600"', "\U0001f600"),
        (r"attention\.(query|value)", r"attention\.(query|value)"),
        ("|\n  a\n  b", "a\nb"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    found = load_document("f", text=f"key: {text}").data["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["017", "00", ".nan", "-.inf", "1e999", "9" * 100_000, "0x" + "f" * 100_000, "-09"])
def test_scalars_without_a_safe_meaning(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_document("f", text=f"key: {text}")
    assert caught.value.where == "f:1:6  key"


def test_positions_of_keys_and_values() -> None:
    document = load_document("f", text="a:\n  - b: [1,\n       2]\n    c: é x\nd:\n")
    assert document.data == {"a": [{"b": [1, 2], "c": "é x"}], "d": None}
    assert document.locate(("a", 0, "b"), key=True) == (2, 5)
    assert document.locate(("a", 0, "b")) == (2, 8)
    assert document.locate(("a", 0, "b", 1)) == (3, 8)
    assert document.locate(("a", 0)) == (2, 5)
    assert document.locate(("a", 0, "missing")) == (2, 5)
    assert document.locate(("nowhere",)) == (1, 1)
    assert document.locate(()) == (1, 1)


def test_json_reads_as_json() -> None:
    value = {"a": ["\t\U0001f600\\ud83d\\n", 1.5, {"b": None}], "c/d": "\\\U0001f600", "é": True}
    for indent in (None, "\t", 2):
        for ascii_only in (True, False):
            text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
            assert load_document("f.json", text=text).data == value


def test_a_json_file_is_json() -> None:
    for text, where in (("{a: 1}", "f.json:1:2"), ('{"a": 1,\n\t"b" 2}', "f.json:2:6"), ("", "f.json:1:1")):
        with pytest.raises(SpecError, match="this is not JSON") as caught:
            load_document("f.json", text=text)
        assert caught.value.where == where
    with pytest.raises(SpecError, match="appears twice"):
        load_document("f.json", text='{"a": 1, "a": 2}')
    with pytest.raises(SpecError, match="too large"):
        load_document("f.json", text='{"a":\t' + "9" * 100_000 + "}")
    with pytest.raises(SpecError, match="32 levels"):
        load_document("f.json", text='{"a":' * 40_000 + "1" + "}" * 40_000)


def test_flow_yaml_keeps_its_tabs() -> None:
    assert load_document("f.yaml", text="{a: \"x\ty\", b: '\\ud83d\\ude00'}").data == {
        "a": "x\ty",
        "b": "\\ud83d\\ude00",
    }


HOSTILE = {
    "alias bomb": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
    "merge bomb": "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}",
    "recursive alias": "a: &a [*a]",
    "tag": "!!python/object/apply:os.system ['echo']",
    "local tag": "a: !x 1",
    "deep flow": "[" * 100_000,
    "deep mappings": "{a: " * 60_000,
    "deep blocks": "\n".join(" " * i + "a:" for i in range(600)),
    "deep dashes": "- " * 100_000,
    "deep questions": "? " * 100_000,
    "long integer": "seed: " + "9" * 200_000,
    "long float": "seed: 1." + "9" * 200_000,
    "duplicates": "a: 1\n" * 50_000,
    "many keys": "\n".join(f"k{i}: 1" for i in range(25_000)),
    "many numbers as keys": "\n".join(f"{i}: 1" for i in range(25_000)),
    "many rules": HEAD + "  - a\n" * 40_000,
    "many wrong rules": HEAD + '  - {adapter: lora, rank: -1, x1: 3, role: "("}\n' * 250,
    "many options": HEAD + "  - {adapter: lora, role: a, " + ", ".join(f"rnak{i}: 1" for i in range(15_000)) + "}",
    "many columns": HEAD + "data: {columns: {" + ", ".join(f"c{i}: 1" for i in range(15_000)) + "}}",
    "many groups": HEAD + "training: {groups: [" + "1," * 100_000 + "]}",
    "many layers": HEAD + "  - {role: a, adapter: full, layers: [" + "1," * 100_000 + "]}",
    "many layer ranges": HEAD + '  - {role: a, adapter: full, layers: "' + "1," * 100_000 + '"}',
    "long layer": HEAD + "  - {role: a, adapter: full, layers: last " + "1" * 100_000 + "}",
    "long key": '"' + "k" * 1000 + '": 1',
    "long name": "name: " + "k" * ROOM,
    "unclosed quote": '"' + "a" * ROOM,
    "tabs": "\t" * ROOM,
    "colons": ":" * ROOM,
    "quotes": "'" * ROOM,
    "bangs": "!" * ROOM,
    "directives": "%TAG ! a\n" * 20_000,
    "documents": "---\n" * 60_000,
    "anchors": "&a " * 80_000,
    "aliases": "[" + "*a, " * 60_000 + "]",
    "newlines": "\n" * ROOM,
    "too large": "a" * 300_000,
    "nul": "a: \0",
    "escaped nul": 'a: "\\0"',
    "half a pair": 'a: "\\ud800"',
    "bell": "a: \x07",
    "empty": "",
    "null": "~",
    "text": "hello",
    "list": "[1]",
    "only a mark": "\ufeff",
    "complex key": "? [a, b]\n: 1",
    "empty key": ": 1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_end_in_a_clear_error_within_a_second(name: str, catalog: Catalog) -> None:
    taken = []
    for _ in range(3):  # a busy machine's processor time is longer, now and then
        begin = time.process_time()
        with pytest.raises(SpecError) as caught:
            parse_spec(HOSTILE[name], "f.yaml", catalog)
        taken.append(time.process_time() - begin)
        if taken[-1] < 1:
            break
    assert min(taken) < 1
    assert caught.value.where.startswith("f.yaml")
    assert len(str(caught.value)) < 20_000


def test_the_largest_lawful_specs_are_quick() -> None:
    body = "".join(f"  - {{role: '{i}{'(?:' * 19}{'ab?' * 100}{')*' * 19}', adapter: full}}\n" for i in range(256))
    begin = time.process_time()
    assert len(parse_spec(HEAD + body).rules) == 256
    assert time.process_time() - begin < 2


def test_files(tmp_path: Path, catalog: Catalog) -> None:
    good = tmp_path / "bert-lora.yaml"
    good.write_text(HEAD + "  - {role: x, adapter: full}\n", "utf-8")
    assert load_spec(good, catalog) == load_spec(str(good), catalog)
    good.write_bytes(b"\xef\xbb\xbf" + good.read_bytes().replace(b"\n", b"\r\n"))
    assert load_spec(good, catalog).name == "a"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bert-lora.yaml").write_text("x", "utf-8")
    (tmp_path / "binary").write_bytes(b"\x00\x01\xff" * 50)
    (tmp_path / "latin").write_bytes(b"a: 1\nb: \xe9")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * 300_000)
    expected = {
        "bert-lroa.yaml": ("there is no such file", "did you mean 'bert-lora.yaml'?"),
        "no/such.yaml": ("there is no such file", f"the folder {tmp_path / 'no'} does not exist either"),
        ".": ("this is a folder, not a file", f"give one of its files, for example {tmp_path / 'bert-lora.yaml'}"),
        "binary": ("the byte 0xFF is not UTF-8", "save the file as UTF-8 text"),
        "latin": ("the byte 0xE9 is not UTF-8", "save the file as UTF-8 text"),
        "pipe": ("this is not a regular file", "give the path of a YAML file"),
        "large": ("the file is larger than 256 KiB", "is this really a spec?"),
        "nul\0": ("the file cannot be read: embedded null byte", ""),
        "x" * 5000: ("the file cannot be read: File name too long", ""),
    }
    for name, (what, hint) in expected.items():
        with pytest.raises(SpecError) as caught:
            load_spec(tmp_path / name)
        assert (caught.value.what, caught.value.hint) == (what, hint)
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "latin")
    assert caught.value.where.endswith("latin:2:4")


def test_a_file_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> int:
        raise PermissionError(13, "Permission denied")

    # The superuser may read everything, so the refusal is played.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SpecError, match="may not be read"):
        load_spec("secret.yaml")


def test_findings_of_a_readable_document_can_wait() -> None:
    with pytest.raises(SpecError, match="appears twice"):
        load_document("f", text="a: 1\na: 2")
    document = load_document("f", text="a: 1\na: 2", defer=True)
    assert document.data == {"a": 1}
    assert len(document.findings) == 1
