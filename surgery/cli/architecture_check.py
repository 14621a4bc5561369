"""`surgery architecture check`: whether a plugin's description of models is true of tiny ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.call import Call
from surgery.cli.complete import plugin_modules

if TYPE_CHECKING:
    from surgery.testing.architecture_checks import Finding

__all__ = ["EXAMPLES", "check"]

EXAMPLES = """Examples:  surgery architecture check surgery_mine

surgery architecture check mine.py --factory mine_models.py:build

Exit code 5: a check failed. A class that cannot be called here is skipped, which is no failure unless all are."""


def check(
    call: Call,
    module: Annotated[
        str,
        typer.Argument(
            metavar="MODULE",
            help="The plugin: an import path, a .py file, or a package's folder.",
            autocompletion=plugin_modules,
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Build from this config.json instead of a shrunken default."),
    ] = None,
    factory: Annotated[
        str | None,
        typer.Option(
            "--factory",
            metavar="MODULE:FUNCTION",
            help="Check the model that this function returns: (model, inputs). For what transformers does not have.",
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            "--head", metavar="CLASS", help="Only this model class. Repeatable; all by default.", show_default=False
        ),
    ] = None,
    other: Annotated[
        list[str] | None,
        typer.Option(
            "--other",
            metavar="PATTERN",
            help="Names of parameters that need no role, a regular expression. Repeatable.",
            show_default=False,
        ),
    ] = None,
    unused: Annotated[
        list[str] | None,
        typer.Option(
            "--unused",
            metavar="PATTERN",
            help="Names of parameters that a class has and never uses, a regular expression. Repeatable.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check what a plugin says of its types on tiny models with every task head, one line for each check.

    Checked are: every parameter has one role; the parts of fused weights make up their axes; models without weights and
    other heads tell the same roles; a forward uses every site; every adapter type merges on every role to the same
    outputs, and unmerges to the same bits; linear maps do what they are described as, where small models can be
    measured. For the rest, compare with the model's own code.
    """
    from surgery.cli.progress import progress
    from surgery.errors import PluginError
    from surgery.testing.check_plugin import check_plugin

    with progress(call, every_step=True) as tell:
        findings = check_plugin(
            module,
            call.registry(),
            config=config,
            factory=factory,
            heads=tuple(head or ()),
            other=tuple(other or ()),
            unused=tuple(unused or ()),
            tell=tell,
        )
    call.answer(_table(module, findings), _text(findings), _style)
    problems = [problem for finding in findings for problem in finding.problems]
    if problems:
        raise PluginError.of(problems)
    call.next_step("compare the parts of fused weights with the model's code, install it, then surgery inspect MODEL")


def _table(module: str, findings: list[Finding]) -> dict[str, Any]:
    return {
        "module": module,
        "failed": sum(bool(finding.problems) for finding in findings),
        "checks": [
            {
                "check": finding.check,
                "type": finding.kind,
                "model": finding.model,
                "verdict": finding.verdict,
                "note": finding.skipped or finding.note,
                "problems": [
                    {"what": problem.what, "where": problem.where, "hint": problem.hint} for problem in finding.problems
                ],
            }
            for finding in findings
        ],
    }


def _text(findings: list[Finding]) -> str:
    rows = [(one.verdict, one.kind, one.model or "all classes", one.check, _note(one)) for one in findings]
    widths = [max(len(row[column]) for row in rows) for column in range(4)] if rows else []
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    )


def _note(finding: Finding) -> str:
    if finding.problems:
        more = f" (and {len(finding.problems) - 1} more)" if len(finding.problems) > 1 else ""
        return f"{finding.problems[0].what}{more}"
    return finding.skipped or finding.note


def _style(line: str) -> str:
    return {"failed": "red", "skipped": "yellow"}.get(line.partition(" ")[0], "green")
