"""Merge and unmerge a checkpoint in place, killed before and after each call that changes something.

    python tests/checkpoint/in_place_kills.py FOLDER

FOLDER holds `base` and `notes`; the outcome is JSON on stdout. One process imports everything, and each attempt is a fork
of it that ends without a word, as one that is killed does.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from commit_disks import CHANGES

from surgery import merge_checkpoint, unmerge_checkpoint, verify_checkpoint
from surgery.checkpoint import RECEIPT, Disk, recover
from surgery.registry import load_registry

FINISHED, KILLED, WRONG = 0, 9, 3
REGISTRY = load_registry()
DO = Disk.do


def attempt(act: Callable[[], object], strike: int = -1, phase: str = "before") -> int:
    """Run `act` in a fork that ends at its change number `strike`; return how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = -1

    def do(self, name, call):
        nonlocal count
        if name not in CHANGES:
            return DO(self, name, call)
        count += 1
        if count == strike and phase == "before":
            os._exit(KILLED)
        result = DO(self, name, call)
        if count == strike:
            os._exit(KILLED)
        return result

    Disk.do = do
    try:
        act()
    except BaseException:
        traceback.print_exc()
        os._exit(WRONG)
    os._exit(FINISHED)


def files(folder: Path) -> dict[str, bytes]:
    """Everything but the receipt of what was unmerged."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if name != RECEIPT}


def main(root: Path) -> None:
    torch.set_num_threads(1)
    place, merged = root / "place", root / "merged"

    def merge(folder: Path = place) -> object:
        return merge_checkpoint(folder, root / "notes", in_place=True, jobs=1, registry=REGISTRY)

    def unmerge() -> object:
        return unmerge_checkpoint(place, in_place=True, jobs=1, registry=REGISTRY)

    shutil.copytree(root / "base", merged)
    assert attempt(lambda: merge(merged)) == FINISHED
    acts = {"merge": (merge, root / "base", merged), "unmerge": (unmerge, merged, root / "base")}
    found: Counter[str] = Counter()
    for name, (act, start, goal) in acts.items():
        old, new = files(start), files(goal)
        for strike in range(10_000):
            ended = []
            for phase in ("before", "after"):
                shutil.copytree(start, place)
                ended.append(attempt(act, strike, phase))
                assert ended[-1] in {FINISHED, KILLED}, ended
                if strike % 2:
                    recover(place)
                else:  # readers recover by themselves
                    assert attempt(lambda: verify_checkpoint(place, registry=REGISTRY)) == FINISHED
                    recover(place)
                state = "old" if files(place) == old else "new" if files(place) == new else "mixed"
                found[f"{name} {state}"] += ended[-1] == KILLED
                assert attempt(act) == FINISHED
                assert files(place) == new, f"{name} {strike} {phase}: wrong after another run"
                assert not (place / ".surgery").exists()
                shutil.rmtree(place)
            if ended == [FINISHED, FINISHED]:
                break
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
