"""Every way to fail: one shape, the documented exit code, nothing on stdout."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import LORA, SCRIPT, TASK, Run

from surgery import errors
from surgery.cli import errors as cli_errors

Golden = Callable[[str, str], None]
Write = Callable[..., Path]


def rule(text: str) -> str:
    return f"- {{{text}}}"


CASES = {
    "unknown-adapter": (3, "- {role: .*, adapter: lorra, rank: 2}", "gpt2", ()),
    "no-match": (4, r"- {role: attention\.qeury, adapter: lora, rank: 2}", "gpt2", ()),
    "no-target": (4, r"- {target: transformer\.h\.0\.attn\.c_atn, adapter: lora, rank: 2}", "gpt2", ()),
    "layer-out-of-range": (4, "- {role: .*, layers: [7], adapter: full}", "gpt2", ()),
    "expect": (4, r"- {role: attention\.query, adapter: lora, rank: 2, expect: 12}", "gpt2", ()),
    "tied": (4, r"- {role: embedding\.token, adapter: full}", "gpt2", ()),
    "shadowed": (4, "- {role: .*, adapter: full}\n  - {role: .*, adapter: bias-only}", "gpt2", ()),
    "oversized": (4, r"- {role: attention\.query, adapter: lora, rank: 99}", "gpt2", ()),
    "unknown-model": (8, LORA, "gtp2", ()),
    "no-headers": (8, LORA, "llama", ("--from-headers",)),
    "unknown-plugin": (5, LORA, "gpt2", ("--no-plugin", "lroa")),
    "blocked-plugin": (3, LORA, "gpt2", ("--no-plugin", "lora")),
}


@pytest.mark.parametrize("name", CASES)
def test_plan_errors(name: str, invoke: Run, spec: Write, models: Path, golden: Golden) -> None:
    code, rules, model, options = CASES[name]
    path = spec(rules)
    result = invoke("plan", path, models / model, *options)
    assert result.code == code
    assert result.out == ""
    golden(f"error-{name}", result.err)
    told = invoke("plan", path, models / model, *options, "--json")
    assert told.code == told.error["exit_code"] == code
    assert told.out == ""
    assert all(set(problem) == {"what", "where", "hint"} for problem in told.error["problems"])  # type: ignore[union-attr]


def test_a_misspelt_model_of_a_plugin(invoke: Run) -> None:
    result = invoke("inspect", "demo:gtp2")
    assert result.code == 8
    assert "did you mean 'demo:gpt2'" in result.err


def test_missing_spec(invoke: Run, spec: Write, tmp_path: Path, golden: Golden) -> None:
    spec(LORA, name="bert-lora")
    result = invoke("plan", tmp_path / "bert-lroa.yaml")
    assert result.code == 3
    golden("error-missing-spec", result.err)


def test_no_model(invoke: Run, spec: Write, golden: Golden) -> None:
    result = invoke("plan", spec(LORA))
    assert result.code == 4
    golden("error-no-model", result.err)


def test_study_for_a_spec_and_back(invoke: Run, spec: Write, tmp_path: Path, golden: Golden) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("version: 1\narms: {}\n", "utf-8")
    first, second = invoke("plan", study), invoke("compare", spec(LORA), "--out", tmp_path / "out")
    assert (first.code, second.code) == (3, 3)
    golden("error-study", first.err + second.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ("chekc",),
        ("check",),
        ("plan", "x", "--form-headers"),
        ("train", "x.yaml"),
        ("train", "x", "-o", "y", "--seed", str(2**63)),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], invoke: Run) -> None:
    result = invoke(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Usage: surgery" in result.err


@pytest.mark.parametrize(
    ("arguments", "what", "where"),
    [
        (("chekc", "--json"), "No such command 'chekc'", "surgery"),
        (("--json", "plan", "x", "--form-headers"), "No such option: --form-headers", "surgery plan"),
        (("train", "x.yaml", "--json"), "Missing option '--out'", "surgery train"),
        (
            ("train", "x", "-o", "y", "--keep", "disc", "--json"),
            "Invalid value for '--keep': 'disc' is unknown; did you mean 'disk'?",
            "surgery train",
        ),
    ],
)
def test_usage_errors_as_json(arguments: tuple[str, ...], what: str, where: str, invoke: Run) -> None:
    result = invoke(*arguments)
    assert (result.code, result.out) == (2, "")
    assert (result.error["kind"], result.error["exit_code"]) == ("UsageError", 2)
    (problem,) = result.error["problems"]  # type: ignore[misc]
    assert problem["what"].startswith(what)
    assert (problem["where"], problem["hint"]) == (where, f"{where} --help")


def test_an_unreadable_spec_is_told_like_a_missing_one(
    invoke: Run, spec: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = spec(LORA)
    real = os.open

    def refuse(name: object, *arguments: Any, **options: Any) -> int:
        if name == path:
            raise PermissionError(13, "Permission denied", str(path))
        return real(name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    for verb in (("check", path), ("plan", path), ("train", path, "-o", "x"), ("compare", path, "-o", "x")):
        result = invoke(*verb)
        assert result.code == 3
        assert result.err.startswith(f"error: {path}: the file may not be read")


def test_exit_codes_are_documented() -> None:
    table = dict(re.findall(r"^\| (\d+) \| `?(\w*)", cli_errors.__doc__ or "", flags=re.MULTILINE))
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    for kind in kinds:
        code = str(kind.exit_code)  # type: ignore[attr-defined]
        assert kind is errors.SurgeryError or table[code] == kind.__name__
    assert {"0", "1", "2", "70", "130", "141"} <= set(table)


@pytest.mark.parametrize("arguments", [("inspect",), ("plan", "spec"), ("report",), ("check",)])
@pytest.mark.parametrize("name", ["a" * 300, "loop/x"])
def test_what_the_system_refuses_is_no_bug(
    arguments: tuple[str, ...], name: str, invoke: Run, spec: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = spec(LORA)
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    result = invoke(*(path if word == "spec" else word for word in arguments), name)
    assert result.code in (1, 3, 6, 8)
    assert "bug" not in result.err
    assert name in result.err


def broken(error: BaseException) -> Callable[..., object]:
    def plan(*_: object, **__: object) -> object:
        raise error

    return plan


def test_a_bug_is_one_line(invoke: Run, spec: Write, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import surgery.planning

    monkeypatch.setattr(surgery.planning, "plan", broken(RuntimeError("boom\nbang")))
    result = invoke("plan", spec(LORA), models / "gpt2")
    assert result.code == 70
    assert result.err.splitlines()[0] == "error: unexpected RuntimeError: boom"
    assert "report" in result.err
    assert "Traceback" not in result.err
    for shown in (
        invoke("plan", spec(LORA), models / "gpt2", "--debug"),
        invoke("--debug", "plan", spec(LORA), models),
    ):
        assert "Traceback" in shown.err
    assert "Traceback" in invoke("plan", spec(LORA), models / "gpt2", SURGERY_DEBUG="1").err


@pytest.mark.parametrize("is_told", [False, True])
def test_ctrl_c(is_told: bool, invoke: Run, spec: Write, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import surgery.planning

    def stopped(*_: object, **__: object) -> object:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if not is_told:
                raise
            raise errors.TrainingError("stopped by Ctrl-C", "runs/a", "go on with --resume") from None

    monkeypatch.setattr(surgery.planning, "plan", stopped)
    result = invoke("plan", spec(LORA), models / "gpt2")
    assert result.code == 130
    wanted = (
        "error: runs/a: stopped by Ctrl-C\n  hint: go on with --resume\n" if is_told else "error: stopped by Ctrl-C\n"
    )
    assert result.err == wanted


def test_a_reader_that_went_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([str(SCRIPT), "schema"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("ending", ["2>/dev/full", "2>&-", ">&- 2>&-"])
def test_nowhere_to_write_keeps_the_exit_code(ending: str) -> None:
    command = f'"{SCRIPT}" check no-such-file.yaml {ending}'
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 3
    assert subprocess.run(["sh", "-c", f'"{SCRIPT}" plugins >&-'], check=False).returncode == 0


def test_stray_output_is_kept_off_stdout(
    invoke: Run, spec: Write, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import surgery.planning

    genuine = surgery.planning.plan

    def noisy(*arguments: object, **options: object) -> object:
        print("a library speaks")
        return genuine(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(surgery.planning, "plan", noisy)
    result = invoke("plan", spec(LORA), models / "gpt2", "--json")
    assert json.loads(result.out)["spec"]["name"] == "tiny"
    assert result.err == "a library speaks\n"


def on_a_terminal(*arguments: object, **environment: str) -> str:
    """Return what the script writes on a terminal of 40 columns."""
    main, terminal = pty.openpty()
    keep = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "40", **environment}
    with subprocess.Popen([str(SCRIPT), *map(str, arguments)], stdout=terminal, stderr=terminal, env=keep) as process:
        os.close(terminal)
        chunks = []
        while True:
            try:
                chunk = os.read(main, 4096)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
        process.wait()
    os.close(main)
    return b"".join(chunks).decode().replace("\r\n", "\n")


def test_colour_on_a_terminal_only(spec: Write) -> None:
    path = spec("- {role: .*, adapter: lora, rank: -3}", name="a-name-that-is-longer-than-the-terminal-is-wide")
    coloured = on_a_terminal("check", path)
    plain = on_a_terminal("check", path, NO_COLOR="1")
    assert "\x1b[" in coloured
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    assert re.search(rf"^error: {re.escape(str(path))}:\d+:\d+  rules\[0\]\.rank: ", plain, flags=re.MULTILINE)


def test_what_a_terminal_would_obey_is_shown_instead(invoke: Run, tmp_path: Path) -> None:
    result = invoke("check", tmp_path / "red\x1b[31m.yaml")
    assert "\x1b" not in result.err
    assert r"red\x1b[31m.yaml" in result.err


def test_task_without_a_head_rule_plans(invoke: Run, spec: Write, models: Path) -> None:
    assert invoke("plan", spec(LORA, TASK), models / "gpt2").code == 0
