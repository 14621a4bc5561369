"""What the program says of itself, and what saying it costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from cli_support import ROOT, Run

import surgery

VERBS = (
    "check",
    "inspect",
    "plan",
    "train",
    "compare",
    "report",
    "merge",
    "unmerge",
    "verify",
    "diff",
    "extract",
    "plugins",
    "schema",
)
NESTED = ("architecture draft", "architecture check")
HEAVY = ("torch", "transformers", "pydantic", "pydantic_core", "rich", "numpy", "pluggy", "yaml", "datasets")
LOADED = "print(*sorted(name for name in {names} if name in sys.modules), file=sys.stderr)"


def loaded(code: str, names: tuple[str, ...]) -> str:
    """Return which of `names` a fresh interpreter has imported after `code`."""
    program = f"import sys\n{code}\n{LOADED.format(names=names)}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stderr.strip()


def test_help_of_the_program(script: Run, golden: Callable[[str, str], None]) -> None:
    result = script("--help")
    assert (result.code, result.err) == (0, "")
    golden("help", result.out)


@pytest.mark.parametrize("verb", [*VERBS, *NESTED])
def test_help_of_each_verb(verb: str, invoke: Run, golden: Callable[[str, str], None]) -> None:
    result = invoke(*verb.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert result == invoke(*verb.split(), "-h")
    golden(f"help-{verb.replace(' ', '-')}", result.out)


def test_every_verb_has_a_golden_help(invoke: Run) -> None:
    from surgery.cli.main import app

    assert tuple(command.callback and command.name for command in app.registered_commands) == VERBS
    assert {
        (group.name, command.name)
        for group in app.registered_groups
        for command in (group.typer_instance.registered_commands if group.typer_instance else ())
    } == {tuple(verb.split()) for verb in NESTED}


def test_version(script: Run) -> None:
    assert script("--version").out == f"surgery {surgery.__version__}\n"


def test_module_is_the_script(script: Run) -> None:
    done = subprocess.run([sys.executable, "-m", "surgery", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == script("--help").out


def test_no_verb_is_help(invoke: Run) -> None:
    result = invoke()
    assert "Usage: surgery" in result.out + result.err


def test_help_imports_nothing_heavy() -> None:
    call = "from surgery.cli.main import run\nsys.argv = ['surgery', '--help']\ntry: run()\nexcept SystemExit: pass"
    assert loaded(call, HEAVY) == ""


def test_import_surgery_imports_nothing_heavy() -> None:
    assert loaded("import surgery", HEAVY) == ""


def test_check_needs_no_torch() -> None:
    call = "from surgery.cli.main import run\nsys.argv = ['surgery', '-q', 'check', 'specs/bert-lora-qv.yaml']\n"
    call += "try: run()\nexcept SystemExit as ended: assert ended.code == 0, ended.code"
    assert loaded(call, ("torch", "transformers", "rich")) == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, script: Run) -> None:
    result = script(_SURGERY_COMPLETE=f"source_{shell}")
    assert result.code == 0
    assert "_SURGERY_COMPLETE" in result.out


def test_completion_of_spec_files(script: Run) -> None:
    result = script(_SURGERY_COMPLETE="complete_bash", COMP_WORDS="surgery check spe", COMP_CWORD="2")
    assert "specs/bert-lora-qv.yaml" in result.out.splitlines()
    inside = script(_SURGERY_COMPLETE="complete_bash", COMP_WORDS="surgery plan specs/gpt2-", COMP_CWORD="2")
    assert inside.out.split() == [f"specs/gpt2-{name}.yaml" for name in ("bias-only", "full", "ia3", "lora-qv")]


def test_completion_of_plugin_names(script: Run) -> None:
    words = "surgery check --no-plugin lora"
    result = script(_SURGERY_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="3")
    assert result.out.split() == ["lora"]
