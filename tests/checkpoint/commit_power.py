"""Cut the power at every boundary between two calls, and look at what recovery makes of what is left."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from commit_disks import CHANGES
from commit_jobs import OUT, prepare, without_receipt
from memory_disk import MemoryDisk, reborn, tree

from surgery.checkpoint import RECEIPT, recover
from surgery.errors import SurgeryError

Job = Callable[[MemoryDisk], bool]


class Recording(MemoryDisk):
    """Calls `boundary` before each change."""

    boundary: Callable[[], None] | None = None

    def do(self, name, act):
        if self.boundary is not None and name in CHANGES:
            self.boundary()
        return super().do(name, act)


class FoundError(Exception):
    """One is enough."""


@dataclass
class Explorer:
    """Runs `job`, which takes the folder from `before` to `after`, and collects what is wrong in `bad`."""

    job: Job
    before: dict[str, bytes]
    after: dict[str, bytes]
    ordered: bool
    kind: type[Recording] = Recording
    samples: int = 4
    depth: int = 1
    bare: bool = False  # not even the folder above is there
    states: int = 0
    old: int = 0
    new: int = 0
    bad: list[str] = field(default_factory=list)
    until_bad: bool = False

    def kills(self) -> bool:
        """Whether there is a bad state; the search ends with it."""
        with contextlib.suppress(FoundError):
            self.explore(until_bad=True)
        return bool(self.bad)

    def explore(self, *, until_bad: bool = False) -> Explorer:
        self.until_bad = until_bad
        disk = self.kind(self.ordered)
        if not self.bare:
            prepare(disk, files=self.before or None)
        disk.all_durable()
        self._cut(disk, lambda: self.job(disk), self.depth, is_acknowledged=True)
        return self

    def _cut(self, disk: Recording, act: Callable[[], object], depth: int, *, is_acknowledged: bool) -> None:
        dice, seen = random.Random(7), set[object]()

        def boundary(is_done: bool = False) -> None:
            for state in disk.after_power_cut(dice, self.samples):
                key = tuple(sorted(tree(state.root).items()))
                if (is_done, key) not in seen:
                    seen.add((is_done, key))
                    self._look(state, depth, is_done)

        disk.boundary = boundary
        act()
        disk.boundary = None
        boundary(is_acknowledged)

    def _look(self, state: MemoryDisk, depth: int, is_done: bool) -> None:
        self.states += 1
        try:
            self._judge(reborn(state.root, state), is_done)
            if depth > 1:  # the power goes again while the commit is recovered
                again = reborn(state.root, state, Recording)
                self._cut(again, lambda: recover(OUT, disk=again), depth - 1, is_acknowledged=is_done)
        except (SurgeryError, OSError, AssertionError) as error:
            self.bad.append(f"{type(error).__name__}: {error}")
            if self.until_bad:
                raise FoundError from error

    def _judge(self, disk: MemoryDisk, is_done: bool) -> None:
        recover(OUT, disk=disk)
        files = content(disk)
        found = without_receipt(files)
        assert found in (self.before, self.after), f"mixed: {sorted(found)}"
        assert found == self.after or not is_done, "told as done, and lost"
        if "models" in disk.root.entries:
            assert set(disk.root.entries["models"].entries) <= {"out"}, "something was left behind"
        self.old += found == self.before
        self.new += found == self.after
        assert self.job(disk) == (found == self.before), "done twice, or not at all"
        assert without_receipt(content(disk)) == self.after, "done twice, or not at all"
        assert (RECEIPT in files) == (found == self.after), "the receipt does not tell"


def content(disk: MemoryDisk) -> dict[str, bytes]:
    """The files of the folder OUT."""
    models = disk.root.entries.get("models")
    out = None if models is None else models.entries.get("out")
    return {} if out is None else tree(out)
