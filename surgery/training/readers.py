"""Reading data files: CSV with a header, JSON Lines, JSON lists, SQuAD's JSON. Every error names file and line."""

from __future__ import annotations

import csv
import io
import json
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from surgery.errors import DataError, nearest
from surgery.training.squad import squad_table
from surgery.training.table import Row, Table

__all__ = ["FORMATS", "read_table"]

MAX_BYTES = 2 * 1024**3
MAX_FIELD = 64 * 1024**2
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that may be half a character: the file itself is UTF-8, which has none."""
_BIG_HINT = "a data set of this size belongs in the Hugging Face format, read by name"


def read_table(path: Path) -> Table:
    """Read one file.

    Raises:
        DataError: the file is missing, unreadable, empty, too large, of an unknown kind, or malformed.
    """
    read = FORMATS.get(path.suffix.lower())
    if read is None:
        hint = f"a data file ends in {', '.join(FORMATS)}; compressed files must be unpacked first"
        raise DataError(f"cannot tell the format of {path.name!r}", str(path), hint)
    table = read(_text(path), str(path))
    if not table:
        raise DataError("the file holds no rows", str(path), "is it the right file?")
    return table


def _text(path: Path) -> str:
    try:
        status = path.stat()
        if not (
            stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        ):  # a pipe would be waited for, a device never ends
            raise DataError("it is no regular file", str(path), "write the rows to a file, and name that")
        if status.st_size > MAX_BYTES:
            raise DataError(f"the file is larger than {MAX_BYTES // 1024**3} GiB", str(path), _BIG_HINT)
        data = path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        is_there = folder.is_dir()
        names = [entry.name for entry in folder.iterdir() if entry.suffix.lower() in FORMATS] if is_there else []
        raise DataError("no such file", str(path), nearest(path.name, names)) from None
    except OSError as error:
        raise DataError(
            f"the file cannot be read: {error.strerror}", str(path), "check that it is yours to read"
        ) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        hint = "save the file as UTF-8"
        raise DataError(f"the byte 0x{data[error.start]:02x} is not UTF-8", f"{path}:{line}", hint) from None


def _csv(text: str, origin: str) -> Table:
    # The limit is global to the process: a text of more than 131,072 characters is no error here.
    before = csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = _header(next(reader, []), origin)
        rows: list[Row] = []
        places: list[int] = []
        start = reader.line_num + 1
        for fields in reader:
            if fields:
                rows.append(_csv_row(header, fields, f"{origin}:{start}"))
                places.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        hint = "quote fields that hold commas, quotes or line ends"
        raise DataError(f"malformed CSV: {error}", f"{origin}:{reader.line_num}", hint) from None
    finally:
        csv.field_size_limit(before)
    return Table(rows, origin, places)


def _header(names: list[str], origin: str) -> list[str]:
    if not any(name.strip() for name in names):
        raise DataError("the file holds no rows", origin, "the first line of a .csv file names its columns")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"two columns are called {twice[0]!r}", f"{origin}:1", "give every column a name of its own")
    return names


def _csv_row(header: list[str], fields: list[str], where: str) -> Row:
    if len(fields) != len(header):
        hint = "quote fields that hold commas, quotes or line ends"
        raise DataError(f"the row has {len(fields)} fields, the header {len(header)}", where, hint)
    return dict(zip(header, fields, strict=True))


def _json_lines(text: str, origin: str) -> Table:
    rows: list[Row] = []
    places: list[int] = []
    # Not splitlines(): it also cuts at characters such as U+2028, which JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_object(_parsed(line, origin, number), f"{origin}:{number}"))
            if _SURROGATE.search(line):
                _refuse_halves(rows[-1], f"{origin}:{number}")
            places.append(number)
    return Table(rows, origin, places)


def _json(text: str, origin: str) -> Table:
    if not text.strip():
        raise DataError("the file holds no rows", origin, "is it the right file?")
    value = _parsed(text, origin, 1)
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        table = squad_table(value, origin)
        if _SURROGATE.search(text):
            for index, row in enumerate(table):
                _refuse_halves(row, table.where(index))
        return table
    if not isinstance(value, list):
        what = f"the file must hold a list of objects, not {_kind(value)}"
        raise DataError(what, origin, "one object in each line is JSON Lines: name the file .jsonl")
    rows = [_object(item, f"{origin}:row {number}") for number, item in enumerate(value, start=1)]
    if _SURROGATE.search(text):
        for number, row in enumerate(rows, start=1):
            _refuse_halves(row, f"{origin}:row {number}")
    return Table(rows, origin, range(1, len(rows) + 1), "row ")


def _parsed(text: str, origin: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{origin}:{line + error.lineno - 1}:{error.colno}"
        raise DataError(f"not JSON: {error.msg.lower()}", where, 'one object such as {"text": "..."}') from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"not JSON that can be read: {error}", f"{origin}:{line}") from None


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"a row must be an object, not {_kind(value)}", where, 'write {"text": "...", "label": "..."}')
    return value


def _refuse_halves(row: Row, where: str) -> None:
    r"""Refuse half a character: `"\ud83d"` is JSON, but no text that could be encoded, hashed or tokenized."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        hint = "characters above \\uffff are two escapes, such as \\ud83d\\ude00; write both, or neither"
        raise DataError(f"{half} is half a character", where, hint) from None


def _kind(value: Any) -> str:
    names: dict[type, str] = {
        list: "a list",
        dict: "one object",
        str: "a text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


FORMATS: Mapping[str, Callable[[str, str], Table]] = {".csv": _csv, ".jsonl": _json_lines, ".json": _json}
