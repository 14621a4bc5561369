"""SQuAD's own JSON: a row for each question, in the hub's columns; what is missing is told with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import DataError
from surgery.training.readers import read_table

ANSWER = {"text": "Rome", "answer_start": 7}
ASKED = {"id": "q1", "question": "where ?", "answers": [ANSWER, {"text": "in Rome", "answer_start": 4}]}
PARAGRAPH = {"context": "Ada in Rome", "qas": [ASKED, {**ASKED, "id": "q2"}]}
DOCUMENT = {"version": "1.1", "data": [{"title": "Ada", "paragraphs": [PARAGRAPH, PARAGRAPH]}]}


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), "utf-8")
    return path


def test_rows_of_questions(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.json", DOCUMENT)
    table = read_table(path)
    assert len(table) == 4
    assert table[1] == {
        "id": "q2",
        "title": "Ada",
        "context": "Ada in Rome",
        "question": "where ?",
        "answers": {"text": ["Rome", "in Rome"], "answer_start": [7, 4]},
    }
    assert table.where(3) == f"{path}:question 4"


@pytest.mark.parametrize(
    ("document", "place", "what"),
    [
        ({"data": [{"title": "x"}]}, "data[0]", "there is no 'paragraphs'"),
        ({"data": [3]}, "data[0]", "there is no 'paragraphs'"),
        ({"data": [{"paragraphs": [{"qas": [ASKED]}]}]}, "data[0].paragraphs[0]", "there is no 'context'"),
        ({"data": [{"paragraphs": [{"context": "x", "qas": {}}]}]}, "data[0].paragraphs[0]", "'qas' must be a list"),
        (
            {"data": [{"paragraphs": [{"context": "x", "qas": [{"question": "q"}]}]}]},
            "data[0].paragraphs[0].qas[0]",
            "there is no 'answers'",
        ),
        (
            {"data": [{"paragraphs": [{"context": "x", "qas": [{"question": "q", "answers": [{"text": "x"}]}]}]}]},
            "data[0].paragraphs[0].qas[0]",
            "there is no 'answer_start'",
        ),
        ({"data": []}, "", "the file holds no rows"),
    ],
)
def test_what_is_missing_is_told(document: Any, place: str, what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "dev.json", document)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert caught.value.what == what
    assert caught.value.where == (f"{path}:{place}" if place else str(path))


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(DOCUMENT).replace("where ?", r"\ud83d"), "utf-8")
    with pytest.raises(DataError, match="is half a character") as caught:
        read_table(path)
    assert caught.value.where == f"{path}:question 1"


def test_the_real_file(real_data: Path) -> None:
    path = real_data / "squad_v1.1" / "dev-v1.1.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    table = read_table(path)
    assert len(table) == 10_570
    for row in table:
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        assert all(row["context"][start : start + len(text)] == text for text, start in pairs)
