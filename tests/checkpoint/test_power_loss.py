"""Every prefix of the calls of a commit, with what a power cut there may leave: all old or all new, exactly once."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from commit_disks import HookedMemory, Killed
from commit_jobs import FRESH, NEW, OLD, OUT, build, merge, prepare, without_receipt
from commit_power import Explorer, Job, Recording, content
from memory_disk import Node

from surgery.checkpoint import RECEIPT, recover
from surgery.errors import SurgeryError

MODELS = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
JOBS = {"replace": (merge, OLD, NEW), "new": (build, {}, FRESH)}


@MODELS
@pytest.mark.parametrize("mode", JOBS)
def test_all_old_or_all_new(mode: str, ordered: bool) -> None:
    found = Explorer(*JOBS[mode], ordered, samples=8).explore()
    assert not found.bad, f"{len(found.bad)} of {found.states}: {found.bad[:3]}"
    assert found.states > 50
    assert found.old
    assert found.new


@MODELS
def test_folders_that_are_made_on_the_way(ordered: bool) -> None:
    found = Explorer(build, {}, FRESH, ordered, bare=True).explore()
    assert not found.bad, f"{len(found.bad)} of {found.states}: {found.bad[:3]}"
    assert found.new


@MODELS
def test_a_journal_does_not_come_back_to_files_that_others_changed(ordered: bool) -> None:
    disk = Recording(ordered)
    prepare(disk, files=OLD)
    disk.all_durable()
    merge(disk)
    node = disk.root.entries["models"].entries["out"].entries["a.safetensors"]
    disk.twins[node].data[:] = node.data[:] = b"edited since"
    for state in disk.after_power_cut(random.Random(0), 8):
        recover(OUT, disk=state)
        assert content(state)["a.safetensors"] == b"edited since"


@MODELS
@pytest.mark.parametrize("mode", JOBS)
def test_what_is_told_as_done_before_is_durable(mode: str, ordered: bool) -> None:
    """Killed at each call, run again, and then the power goes: what the second run said of the first one stays true."""
    job, before, after = JOBS[mode]
    told = 0
    for n in range(100):
        disk = HookedMemory(ordered)
        prepare(disk, files=before or None)
        disk.all_durable().calls.clear()

        def strike(at: int, now: str, _name: str, n: int = n) -> None:
            if at == n and now == "after":
                raise Killed

        disk.strike = strike
        try:
            job(disk)
            break
        except Killed:
            disk.bury()
        disk.dead, disk.strike = False, lambda _n, _phase, _name: None
        told += not job(disk)
        for state in disk.after_power_cut(random.Random(0), 4):
            recover(OUT, disk=state)
            assert without_receipt(content(state)) == after
    assert told


@MODELS
def test_the_power_goes_again_during_recovery(ordered: bool) -> None:
    found = Explorer(merge, OLD, NEW, ordered, samples=1, depth=2).explore()
    assert not found.bad, f"{len(found.bad)} of {found.states}: {found.bad[:3]}"
    assert found.states > 300


class NoFileSync(Recording):
    def settle(self, node: Node) -> None:
        if node.is_folder:
            super().settle(node)


class NoFolderSync(Recording):
    def settle(self, node: Node) -> None:
        if not node.is_folder:
            super().settle(node)


class NoSync(Recording):
    def settle(self, node: Node) -> None:
        pass


class RenameFirst(Recording):
    """Files are synced after the next rename."""

    def __init__(self, ordered: bool = True) -> None:
        super().__init__(ordered)
        self.late: list[Node] = []

    def settle(self, node: Node) -> None:
        if node.is_folder:
            super().settle(node)
        else:
            self.late.append(node)

    def rename(self, folder, name, to_folder, to_name):
        super().rename(folder, name, to_folder, to_name)
        late, self.late = self.late, []
        for node in late:
            self.do("sync", lambda node=node: super(RenameFirst, self).settle(node))


class NoReceipt(Recording):
    """The receipt is thrown away where it would get its name."""

    def rename(self, folder, name, to_folder, to_name):
        if to_name == RECEIPT:
            self.unlink(folder, name)
        else:
            super().rename(folder, name, to_folder, to_name)


class NoJournalSync(Recording):
    """The second sync of the work folder, which makes the decision durable, is left out."""

    def rename(self, folder, name, to_folder, to_name):
        super().rename(folder, name, to_folder, to_name)
        self.skip = to_name == "journal"

    skip = False

    def settle(self, node: Node) -> None:
        if self.skip:
            self.skip = False
        else:
            super().settle(node)


class JournalForgottenFirst(Recording):
    """The journal is removed durably before the renames are durable."""

    def __init__(self, ordered: bool = True) -> None:
        super().__init__(ordered)
        self.moved = False
        self.late: list[Node] = []

    def rename(self, folder, name, to_folder, to_name):
        super().rename(folder, name, to_folder, to_name)
        self.moved = to_name != "journal"

    def settle(self, node: Node) -> None:
        if self.moved and not self.late:
            self.late = [node]
            return
        super().settle(node)
        if self.moved:
            super().settle(self.late[0])


MUTANTS: list[tuple[type[Recording], str, bool]] = [
    (NoFileSync, "replace", True),
    (NoFileSync, "replace", False),
    (NoFileSync, "new", True),
    (NoFileSync, "new", False),
    (NoFolderSync, "replace", False),
    (NoFolderSync, "replace", True),
    (NoFolderSync, "new", False),
    (NoFolderSync, "new", True),
    (NoSync, "replace", True),
    (NoSync, "new", False),
    (RenameFirst, "replace", True),
    (RenameFirst, "replace", False),
    (RenameFirst, "new", True),
    (NoReceipt, "replace", True),
    (NoJournalSync, "replace", False),
    (JournalForgottenFirst, "replace", False),
]


@pytest.mark.parametrize(
    ("mutant", "mode", "ordered"), MUTANTS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_mutants_of_the_protocol_die(mutant: type[Recording], mode: str, ordered: bool) -> None:
    job: Job
    job, before, after = JOBS[mode]
    assert Explorer(job, before, after, ordered, mutant, samples=4).kills()


class LeavesOneOut(Recording):
    """The syncs or renames whose numbers are in `left_out` do nothing."""

    left_out: frozenset[int] = frozenset()

    def __init__(self, ordered: bool = True) -> None:
        super().__init__(ordered)
        self.steps: list[str] = []
        self.settled: dict[int, Node] = {}

    def _is_taken(self, step: str) -> bool:
        self.steps.append(step)
        return len(self.steps) - 1 not in self.left_out

    def settle(self, node: Node) -> None:
        self.settled[len(self.steps)] = node
        if self._is_taken("sync"):
            super().settle(node)

    def rename(self, folder, name, to_folder, to_name):
        if self._is_taken("rename"):
            super().rename(folder, name, to_folder, to_name)


def a_forgotten_journal_comes_back(kind: type[Recording]) -> bool:
    """Whether it does, to files that others have changed since."""
    disk = kind(False)
    prepare(disk, files=OLD)
    disk.all_durable()
    merge(disk)
    node = disk.root.entries["models"].entries["out"].entries["a.safetensors"]
    disk.twins[node].data[:] = node.data[:] = b"edited since"
    for state in disk.after_power_cut(random.Random(0), 8):
        try:
            recover(OUT, disk=state)
        except SurgeryError:
            return True
        if content(state)["a.safetensors"] != b"edited since":
            return True
    return False


def nodes(root: Node) -> Iterator[Node]:
    yield root
    for node in root.entries.values():
        yield from nodes(node)


def within(disk: Recording, name: str) -> set[int]:
    out = disk.root.entries["models"].entries["out"]
    return {id(node) for node in nodes(out.entries[name]) if node.is_folder}


@pytest.mark.parametrize("mode", JOBS)
def test_every_single_sync_and_rename_is_needed(mode: str) -> None:
    job, before, after = JOBS[mode]
    whole = LeavesOneOut(False)
    prepare(whole, files=before or None)
    first, inner = len(whole.steps), within(whole, "kept") if mode == "replace" else set()
    job(whole)
    assert set(whole.steps) == {"sync", "rename"}
    assert not a_forgotten_journal_comes_back(LeavesOneOut)
    needed = [{number} for number in range(first, len(whole.steps))]
    if mode == "replace":
        # Folders within are synced by whoever finishes, whether this commit or an interrupted one changed their entries,
        # and once more where one of them goes: some of these syncs are needed, not each.
        inner |= within(whole, "kept")
        spare = {number for number, node in whole.settled.items() if id(node) in inner and number >= first}
        assert 2 <= len(spare) <= 5
        needed = [one for one in needed if not one & spare] + [spare]
    for numbers in needed:
        mutant = type("Mutant", (LeavesOneOut,), {"left_out": frozenset(numbers)})
        is_caught = Explorer(job, before, after, False, mutant, samples=4).kills()
        assert is_caught or a_forgotten_journal_comes_back(mutant), [(n, whole.steps[n]) for n in numbers]
