"""Kill -9 at random times: `python tests/checkpoint/kill_trials.py --trials 1000` prints what became of the files.

A child process merges again and again, each time adding one mark to every shard, and tells when it begins and when it
is done. It is killed at a random time. Then the folder is recovered and read: the shards must all have the same number
of marks (else `mixed`), not fewer than were told as done (else `lost`), and after the interrupted job has been run
again, exactly as many as were begun (else `double`). Two protocols that people use stand beside it, to show that the
trial can tell: the shards overwritten in place, and each written beside and renamed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from commit_jobs import SHARDS

from surgery.checkpoint import Transaction, read_receipt, recover
from surgery.checkpoint.receipt import encode_receipt
from surgery.errors import SurgeryError

MARK = b"+"
BODY = 200_000
Merge = Callable[[Path, int], None]


def marks(path: Path) -> int:
    """How often the shard was merged; -1 where it is damaged."""
    data = path.read_bytes()
    if len(data) == BODY and len(set(data)) == 1:  # patched in place: each merge adds one to every byte
        return (data[0] - path.name.encode()[0]) % 256
    count = len(data) - BODY
    return count if count >= 0 and data == path.name[:1].encode() * BODY + MARK * count else -1


def overwrite(out: Path, job: int) -> None:
    for name in SHARDS:
        data = (out / name).read_bytes() + MARK
        with (out / name).open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())


def rename_each(out: Path, job: int) -> None:
    for name in SHARDS:
        data = (out / name).read_bytes() + MARK
        with (out / f"{name}.tmp").open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        (out / f"{name}.tmp").rename(out / name)


def commit(out: Path, job: int) -> None:
    with Transaction(out, "replace", job=str(job)) as tx:
        if tx.done:
            return
        for name in SHARDS:
            data = (out / name).read_bytes() + MARK
            with tx.create(name, len(data)) as file:
                for start in range(0, len(data), 50_000):
                    file.write_at(start, data[start : start + 50_000])
        tx.commit({})


def commit_new(out: Path, job: int) -> None:
    """Each merge makes a new folder out of the last, and the last one goes."""
    before = out / str(job - 1)
    with Transaction(out / str(job), "new", job=str(job)) as tx:
        if not tx.done:
            for name in SHARDS:
                tx.write(name, (before / name).read_bytes() + MARK)
            tx.commit({})
    shutil.rmtree(before, ignore_errors=True)


def patch(out: Path, job: int) -> None:
    """Each merge adds one to every byte, in two batches for each shard."""
    half = BODY // 2
    batches = [(name, start) for name in SHARDS for start in (0, half)]
    with Transaction(out, "replace", job=str(job)) as tx:
        if tx.done:
            return
        for name, start in batches[tx.patched :]:
            old = (out / name).read_bytes()[start : start + half]
            tx.patch([(name, start, bytes([(old[0] + 1) % 256]) * half)], residue=old)
        tx.keep_residue("undo")
        tx.commit({})


def settled_replace(out: Path) -> Path:
    recover(out)
    return out


def settled_new(out: Path) -> Path:
    for path in [path for path in out.iterdir() if path.name.startswith(".")]:
        recover(out / path.name.removeprefix(".").removesuffix(".surgery"))
    return max(
        (path for path in out.iterdir() if (path / "surgery-receipt.json").exists()), key=lambda path: int(path.name)
    )


def plain(out: Path) -> Path:
    return out


PROTOCOLS: dict[str, tuple[Merge, Callable[[Path], Path], bool]] = {
    "overwrite": (overwrite, plain, False),
    "rename each": (rename_each, plain, False),
    "commit, replace": (commit, settled_replace, True),
    "commit, new": (commit_new, settled_new, True),
    "patch in place": (patch, settled_replace, True),
}


def child(merge: Merge, out: Path, told: int) -> None:
    """Merge until the end comes."""
    for job in range(1, 1_000_000):
        os.write(told, b"b")
        merge(out, job)
        os.write(told, b"d")


def trial(name: str, out: Path, delay: float) -> set[str]:
    """Kill one child after `delay` seconds of work; return what is wrong, and `in the middle` where it was at work."""
    merge, _, _ = PROTOCOLS[name]
    first = out / "0" if name == "commit, new" else out
    first.mkdir(parents=True)
    for shard in SHARDS:
        (first / shard).write_bytes(shard[:1].encode() * BODY)
    if first != out:
        (first / "surgery-receipt.json").write_bytes(encode_receipt("0", {}, []))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            child(merge, out, write)
        os._exit(1)
    os.close(write)
    told = os.read(read, 1)  # it has begun
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself"
    while block := os.read(read, 65536):
        told += block
    os.close(read)
    begun, done = told.count(b"b"), told.count(b"d")
    wrong = {"in the middle"} if begun > done else set()
    try:
        return wrong | judge(name, out, begun, done)
    except (SurgeryError, OSError, ValueError) as error:
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        return wrong | {"lost"}


def judge(name: str, out: Path, begun: int, done: int) -> set[str]:
    """What is wrong with the folder of which a process said so often that it began, and that it was done."""
    merge, settled, has_receipt = PROTOCOLS[name]
    wrong = set[str]()
    if name == "patch in place" and recover(out).action == "patching":
        merge(out, begun)  # half is what is allowed here, if the job itself can finish it
    found = {marks(settled(out) / shard) for shard in SHARDS}
    if len(found) > 1 or -1 in found:
        return {"lost" if -1 in found else "mixed"}
    if not done <= next(iter(found)) <= begun:
        wrong.add("lost")
    if has_receipt:
        receipt = read_receipt(settled(out))
        if int(receipt["job"] if receipt else 0) != next(iter(found)):
            wrong.add("lost")
        merge(out, begun)
        if {marks(settled(out) / shard) for shard in SHARDS} != {begun}:
            wrong.add("double")
        if any(path.name.startswith(".") for path in out.rglob("*")):
            wrong.add("litter")
    return wrong


def run(name: str, trials: int, where: Path, seed: int = 0, longest: float = 0.06) -> Counter[str]:
    """Return how many trials ended in which way."""
    dice = random.Random(seed)
    counts: Counter[str] = Counter()
    for number in range(trials):
        out = where / f"{number}"
        counts.update(trial(name, out, dice.uniform(0, longest)))
        shutil.rmtree(out, ignore_errors=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--where", type=Path, help="a folder on the disk to try; by default that of temporary files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("protocols", nargs="*", default=list(PROTOCOLS))
    given = parser.parse_args()
    print("| protocol | trials | killed in the middle | lost or damaged | mixed | double | left behind |")
    print("|---|---|---|---|---|---|---|")
    for name in given.protocols:
        with tempfile.TemporaryDirectory(dir=given.where) as folder:
            counts = run(name, given.trials, Path(folder), given.seed)
        cells = [str(counts[key]) for key in ("in the middle", "lost", "mixed", "double", "litter")]
        print(f"| {name} | {given.trials} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
