"""One call of the command line: what was asked for in general, and how it answers."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from surgery.cli.terminal import Style, write_line, write_text

if TYPE_CHECKING:
    from surgery.registry import Registry

__all__ = ["Call", "Common", "shell"]


@dataclass(frozen=True)
class Common:
    """The options that stand before or after any verb.

    Attributes:
        plugin: plugins to load even where loading is switched off.
        no_plugin: plugins never to load.
        json: answer in JSON.
        quiet: only the answer: no progress, no notes, no next step.
        debug: show the traceback of an error.
    """

    plugin: tuple[str, ...] = ()
    no_plugin: tuple[str, ...] = ()
    json: bool = False
    quiet: bool = False
    debug: bool = False

    def __or__(self, other: Common) -> Common:
        return Common(
            plugin=(*self.plugin, *other.plugin),
            no_plugin=(*self.no_plugin, *other.no_plugin),
            json=self.json or other.json,
            quiet=self.quiet or other.quiet,
            debug=self.debug or other.debug,
        )


@dataclass(frozen=True)
class Call:
    """The answer goes to `out`, everything else to `err`."""

    common: Common
    out: TextIO
    err: TextIO

    def registry(self) -> Registry:
        """Return what the installed plugins supply, as the options say."""
        from surgery.registry import load_registry

        return load_registry(only=self.common.plugin, block=self.common.no_plugin)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks, of the several that `torchrun` may have started."""
        return os.environ.get("RANK", "0") in ("", "0")

    @property
    def is_talkative(self) -> bool:
        """Whether notes, next steps and plain progress lines are wanted."""
        return self.is_main and not self.common.quiet and not self.common.json

    def answer(self, value: object, text: str, style: Style | None = None) -> None:
        """Write the result: `text` for people, `value` as sorted JSON for machines."""
        if not self.is_main:
            return
        if self.common.json:
            self.out.write(json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
        else:
            write_text(self.out, text, style)

    def note(self, text: str) -> None:
        """Write what the user should know, besides the answer."""
        if self.is_talkative:
            write_line(self.err, [("note: ", "yellow"), (text, "")])

    def next_step(self, text: str) -> None:
        """Write what to type next."""
        if self.is_talkative:
            write_line(self.err, [("next: ", "green"), (text, "")])


def shell(*words: object) -> str:
    """Return a command line that can be pasted into a shell."""
    return shlex.join(str(word) for word in words)
