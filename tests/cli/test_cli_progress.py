"""Progress: lines for logs, bars for terminals, nothing for those who asked for nothing."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TextIO

import pytest

from surgery.cli import progress as module
from surgery.cli.call import Call, Common
from surgery.cli.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def call(stream: TextIO, **options: bool) -> Call:
    return Call(Common(**options), io.StringIO(), stream)  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_lines_come_now_and_then(clock: Callable[[float], None]) -> None:
    stream = io.StringIO()
    with progress(call(stream)) as tell:
        assert tell is not None
        for step in range(1, 13):
            tell(step, 12, "training")
            clock(1.0)
        tell(1, 2, "evaluating")
        tell(2, 2, "evaluating")
    assert stream.getvalue().splitlines() == [
        "[ 1/12] training", "[ 6/12] training", "[11/12] training", "[12/12] training",
        "[1/2] evaluating", "[2/2] evaluating",
    ]  # fmt: skip


def test_a_line_tells_losses_and_an_evaluation_is_never_left_out(clock: Callable[[float], None]) -> None:
    stream = io.StringIO()
    with progress(call(stream)) as tell:
        assert tell is not None
        for step in range(1, 5):
            tell.detail(f"loss {step}")  # type: ignore[attr-defined]
            tell(step, 9, "training")
            clock(1.0)
        tell.detail("loss 4, validation loss 5", is_news=True)  # type: ignore[attr-defined]
        tell(4, 9, "training")
        tell(1, 2, "evaluating")
    assert stream.getvalue().splitlines() == [
        "[1/9] training  loss 1", "[4/9] training  loss 4, validation loss 5", "[1/2] evaluating",
    ]  # fmt: skip


def test_every_step_has_a_line() -> None:
    stream = io.StringIO()
    with progress(call(stream), every_step=True) as tell:
        assert tell is not None
        tell(1, 2, "first")
        tell(2, 2, "second")
    assert stream.getvalue() == "[1/2] first\n[2/2] second\n"


@pytest.mark.parametrize("option", ["quiet", "json"])
def test_silence(option: str) -> None:
    with progress(call(io.StringIO(), **{option: True})) as tell:
        assert tell is None


def test_only_the_main_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with progress(call(io.StringIO())) as tell:
        assert tell is None


@pytest.mark.parametrize("every_step", [False, True])
def test_bars(every_step: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress(call(stream), every_step=every_step) as tell:
        assert tell is not None
        tell.detail("loss 0.5")  # type: ignore[attr-defined]
        tell(1, 4, "training [red]")
        tell(4, 4, "evaluating")
    shown = stream.getvalue()
    assert "4/4" in shown
    assert "training [red]  loss 0.5" in shown
    is_two_lines = "\x1b[1A" in shown  # the cursor goes up to draw the first of two bars again
    assert is_two_lines == (not every_step)
