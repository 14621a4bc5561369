"""The program `surgery`: its verbs, and the options that stand before them."""

from __future__ import annotations

import gc
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from surgery.cli import (
    architecture,
    architecture_check,
    check,
    compare,
    diff,
    extract,
    inspect,
    merge,
    plan,
    plugins,
    report,
    schema,
    train,
    unmerge,
    verify,
)
from surgery.cli.command import as_command, as_root
from surgery.cli.usage import Program

__all__ = ["app", "run"]

app = typer.Typer(
    name="surgery",
    cls=Program,
    # Rich help would import Rich, which costs more than all the rest of --help.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from surgery import __version__

        typer.echo(f"surgery {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Adapt pretrained transformers by a declarative spec, and undo it bit for bit.

    A spec (YAML) says what of a model is adapted and how; the plan shows what that means before a byte changes.
    """


app.callback()(as_root(_root))
_BRIEF = frozenset({check.check, inspect.inspect, plan.plan, plugins.plugins, schema.schema})
"""Verbs that answer and end before there could be garbage to collect."""

for _verb, _examples, _summary in (
    (check.check, check.EXAMPLES, "Are these specs or studies valid?"),
    (inspect.inspect, inspect.EXAMPLES, "What is this model made of?"),
    (plan.plan, plan.EXAMPLES, "What will this spec do to this model?"),
    (train.train, train.EXAMPLES, "Train what a spec says."),
    (compare.compare, compare.EXAMPLES, "Run a study: several specs on equal terms."),
    (report.report, report.EXAMPLES, "Write a study's report again."),
    (merge.merge, merge.EXAMPLES, "Merge adapters into a checkpoint on disk."),
    (unmerge.unmerge, unmerge.EXAMPLES, "Take them out again, bit for bit."),
    (verify.verify, verify.EXAMPLES, "Is a checkpoint what its receipt says?"),
    (diff.diff, diff.EXAMPLES, "How do two checkpoints differ?"),
    (extract.extract, extract.EXAMPLES, "Make an adapter of a full fine-tune."),
    (plugins.plugins, plugins.EXAMPLES, "What is installed?"),
    (schema.schema, schema.EXAMPLES, "Print the JSON Schema of a spec, for editors."),
):
    app.command(_verb.__name__, short_help=_summary, epilog=_examples)(as_command(_verb, is_brief=_verb in _BRIEF))


_architecture = typer.Typer(
    help="Describe a family of models: which weight is what.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_architecture.command("draft", short_help="Begin a plugin that describes a model.", epilog=architecture.EXAMPLES)(
    as_command(architecture.draft)
)
_architecture.command("check", short_help="Is what a plugin says of models true?", epilog=architecture_check.EXAMPLES)(
    as_command(architecture_check.check)
)
app.add_typer(_architecture, name="architecture")


def run() -> None:
    """Run the console script; it ends in SystemExit."""
    # A stream that the caller has closed is None.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - open to the end
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A name that the terminal's encoding lacks is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    # Importing torch and a model's code makes half a million objects that stay. Looking for garbage among them takes
    # a third of the time of a plan: while they come, unless the verb turns that on again, and when the process ends.
    gc.disable()
    try:
        app(prog_name="surgery")
    finally:
        gc.freeze()
