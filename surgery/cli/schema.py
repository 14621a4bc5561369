"""`surgery schema`: the JSON Schema that editors complete and check specs with."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from surgery.cli.call import Call

__all__ = ["EXAMPLES", "schema"]

EXAMPLES = "Example:  surgery schema > spec.schema.json"


def schema(
    call: Call,
    study: Annotated[bool, typer.Option("--study", help="The schema of a study instead of a spec's.")] = False,
) -> None:
    """Print the JSON Schema of a spec, with the options of every installed plugin.

    A spec names it in its first line:  # yaml-language-server: $schema=spec.schema.json
    """
    from surgery.spec import Spec, json_schema

    registry = call.registry()
    if study:
        from surgery.study import StudySpec

        value = json_schema(registry, StudySpec)
    else:
        value = json_schema(registry, Spec)
    call.answer(value, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False))
    if call.out.isatty():
        call.next_step("surgery schema > spec.schema.json")
