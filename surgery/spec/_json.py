"""JSON on its way into the YAML reader, which keeps positions: the few things in which JSON is no YAML."""

from __future__ import annotations

import json
import re
from typing import Any

from surgery.errors import SpecError

__all__ = ["json_as_yaml"]

# JSON writes characters beyond U+FFFF as two escapes, which YAML does not know.
_PAIR = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\.")
# A tab stands only between tokens in JSON; the others are line breaks to YAML, and stand only in text.
_OTHER = str.maketrans({"\t": " ", "\x85": "\\N", "\u2028": "\\L", "\u2029": "\\P"})


def json_as_yaml(text: str, name: str) -> str:
    """Return `text`, if it is JSON, as YAML of the same meaning and the same lines.

    Raises:
        SpecError: the file is called .json and is not.
    """
    if not text.lstrip().startswith(("{", "[")) and not name.endswith(".json"):
        return text
    try:
        _check(text)
    except json.JSONDecodeError as error:
        if not name.endswith(".json"):
            return text
        hint = "call the file .yaml to write it as YAML" if text.strip() else "a spec begins with version: 1"
        where = f"{name}:{error.lineno}:{error.colno}"
        raise SpecError(f"this is not JSON: {error.msg[:1].lower()}{error.msg[1:]}", where, hint) from None
    except RecursionError:
        return text
    return _PAIR.sub(_one_escape, text).translate(_OTHER)


def _check(text: str) -> None:
    def unread(_number: str) -> Any:
        # Numbers are read by the YAML side, which bounds them; converting a long one here would take its time.
        return None

    json.loads(text, parse_int=unread, parse_float=unread, parse_constant=unread)


def _one_escape(match: re.Match[str]) -> str:
    if match.group(1) is None:
        return match.group()
    high, low = int(match.group(1), 16), int(match.group(2), 16)
    return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08X}"
