"""`surgery check`: whether what a file says is valid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.call import Call, shell
from surgery.cli.complete import spec_files

if TYPE_CHECKING:
    from surgery.registry import Registry

__all__ = ["EXAMPLES", "check"]

EXAMPLES = "Example:  surgery check specs/*.yaml"


def check(
    call: Call,
    specs: Annotated[
        list[Path],
        typer.Argument(metavar="SPEC", help="Spec or study files.", readable=False, autocompletion=spec_files),
    ],
) -> None:
    """Check specs and studies, options of plugins included, and tell every mistake with its place.

    No model is needed; whether a spec fits a model is what `surgery plan` tells.
    """
    from surgery.errors import Problem, SpecError

    registry = call.registry()
    verdicts: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for path in specs:
        try:
            verdicts.append(_verdict(path, registry))
        except SpecError as error:
            problems += error.problems
            told = [{"what": item.what, "where": item.where, "hint": item.hint} for item in error.problems]
            verdicts.append({"file": str(path), "valid": False, "problems": told})
    valid = [verdict for verdict in verdicts if verdict["valid"]]
    call.answer(verdicts, "\n".join(_line(verdict) for verdict in valid), lambda line: "green")
    if problems:
        raise SpecError.of(problems)
    verb = "compare" if valid[0]["kind"] == "study" else "plan"
    call.next_step(f"surgery {verb} {shell(valid[0]['file'])}{' --out DIR' if verb == 'compare' else ''}")


def _verdict(path: Path, registry: Registry) -> dict[str, Any]:
    from surgery.cli.files import read
    from surgery.spec import Spec

    found = read(path, registry)
    verdict: dict[str, Any] = {"file": str(path), "valid": True, "name": found.name, "problems": []}
    if isinstance(found, Spec):
        return {**verdict, "kind": "spec", "rules": len(found.rules)}
    return {**verdict, "kind": "study", "arms": len(found.arms)}


def _line(verdict: dict[str, Any]) -> str:
    noun = "rules" if verdict["kind"] == "spec" else "arms"
    number = verdict[noun]
    return f"{verdict['file']}: ok, {verdict['kind']} {verdict['name']}, {number} {noun[:-1] if number == 1 else noun}"
