"""Writing plain data as YAML that every reader, of YAML 1.1 or 1.2, understands alike."""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["to_yaml"]


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper with text quoted wherever this project's reader, too, would see something else in it."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        # PyYAML leaves list items unindented under their key; the project's files indent them.
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


# YAML 1.1, which PyYAML's own resolvers know, takes `1e-3` and `0o7` for text; YAML 1.2 and this project do not.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d+)(?:[eE][-+]?\d+)?$|^0o?[0-7]+$|^[-+]?\.(?:inf|nan)$", re.IGNORECASE),
    list("-+.0123456789"),
)


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:
        # YAML 1.1 readers take 1e-05 for text, but not 1.0e-05.
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    short = all(not isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=short)


_Dumper.add_representer(float, _float)
_Dumper.add_representer(list, _list)


def to_yaml(data: dict[str, Any]) -> str:
    """Return `data` (dicts, lists, text, numbers, booleans, null) as YAML in the order given."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False)
