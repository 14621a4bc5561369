"""Whatever is done to a checkpoint, in any order and with any accident: a set of adapters has one result, bit for bit.

The oracle is arithmetic with rationals. The empty set is the base, byte for byte.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commit_disks import Hooked, Killed
from faults import EVERYTHING, WRITES, faulty
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from merging import bytes_of
from operating import REGISTRY
from oracle import VIEWS, OverflowingError
from other_process import OtherProcess, do
from test_kill_points import PHASES, die, stop_at
from tiny import TinyAdapter, snapshot, wanted, write_base, write_native, write_peft
from tiny_world import World

from surgery import SurgeryError, verify_checkpoint
from surgery.checkpoint import RECEIPT
from surgery.errors import StateError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAPS = ("a", "b")
NAMES = ("k", "l", "m", "n")
UNDO = ("residue", "residue", "copy", "file", "none")
BLOCKS = (1 << 19, 7, 4)
ERRORS = (errno.EIO, errno.ENOSPC)

other: OtherProcess | None = None


@st.composite
def weights(draw: st.DrawFn, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return numbers of any bits, or such as weights have."""
    tensor = torch.empty(shape, dtype=dtype)
    if draw(st.integers(0, 3)) == 0:
        width = 8 * tensor.element_size()
        bits = st.integers(-(1 << width - 1), (1 << width - 1) - 1)
        size = tensor.numel()
        pattern = torch.tensor(draw(st.lists(bits, min_size=size, max_size=size)), dtype=VIEWS[width // 8])
        return pattern.view(dtype).view(shape)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return (torch.randn(shape, generator=generator) * draw(st.sampled_from([0.02, 1.0, 300.0]))).to(dtype)


@st.composite
def factors(draw: st.DrawFn, *shape: int) -> torch.Tensor:
    """Return numbers of an adapter: drawn, of few bits (which makes ties), nought, or huge."""
    kind = draw(st.sampled_from(["drawn", "drawn", "few bits", "few bits", "nought", "huge"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    if kind == "few bits":
        return torch.randint(-4, 5, shape, generator=generator) * 2.0 ** -draw(st.integers(0, 12))
    size = {"drawn": 0.3, "nought": 0.0, "huge": 1e12}[kind]
    return torch.randn(shape, generator=generator) * size


class Machine(RuleBasedStateMachine):
    @initialize(data=st.data(), dtype=st.sampled_from(DTYPES), shards=st.integers(1, 3), block=st.sampled_from(BLOCKS))
    def begin(self, data: st.DataObject, dtype: torch.dtype, shards: int, block: int) -> None:
        self.root = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        shapes = {f"{name}.weight": tuple(data.draw(st.integers(1, 5)) for _ in range(2)) for name in MAPS} | {
            "norm.weight": (3,)
        }
        self.tensors = {name: data.draw(weights(dtype, *shape)) for name, shape in shapes.items()}
        self.base = write_base(self.root / "base", self.tensors, shards)
        self.block, self.count = block, 0
        self.adapters: dict[str, TinyAdapter] = {}
        self.known: dict[frozenset[str], dict[str, bytes] | None] = {}
        self.live, self.inside, self.undo = self.base, frozenset[str](), "residue"
        self.last: dict[str, Any] | None = None
        self.is_new = True

    def teardown(self) -> None:
        torch.set_num_threads(1)
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    # What is right

    def files(self, names: frozenset[str]) -> dict[str, bytes] | None:
        """Return the files, byte for byte, that hold these adapters; None where a weight would overflow."""
        if names not in self.known:
            try:
                want = wanted(self.tensors, [self.adapters[name] for name in names])
            except OverflowingError:
                self.known[names] = None
                return None
            files = bytes_of(self.base)
            for file in [name for name in files if name.endswith(".safetensors")]:
                data = bytearray(files[file])
                head = 8 + int.from_bytes(data[:8], "little")
                for name, entry in json.loads(data[8:head]).items():
                    if name != "__metadata__":
                        start, end = entry["data_offsets"]
                        data[head + start : head + end] = (
                            want[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()
                        )
                files[file] = bytes(data)
            self.known[names] = files
        return self.known[names]

    @invariant()
    def the_set_decides_the_bits(self) -> None:
        if getattr(self, "is_new", False):
            self.is_new = False
            assert bytes_of(self.live) == self.files(self.inside)
            found = verify_checkpoint(self.live, self.base, jobs=1, registry=REGISTRY)
            assert frozenset(found.adapters) == self.inside
            assert not [path.name for path in self.root.iterdir() if path.name.startswith(".")], "left behind"

    # What is done

    @precondition(lambda self: len(self.adapters) < len(NAMES))
    @rule(data=st.data(), is_peft=st.booleans(), rank=st.integers(1, 2), alpha=st.sampled_from([1.0, 0.3, 7.0]))
    def define(self, data: st.DataObject, is_peft: bool, rank: int, alpha: float) -> None:
        name = NAMES[len(self.adapters)]
        alpha *= 1 + len(self.adapters) / 8  # equal adapters would be one that is merged twice
        one = TinyAdapter(name, self.root / name)
        chosen = data.draw(st.lists(st.sampled_from(MAPS), min_size=1, unique=True))
        for path in sorted(chosen):
            rows, columns = self.tensors[f"{path}.weight"].shape
            one.products[f"{path}.weight"] = (
                data.draw(factors(rows, rank)),
                data.draw(factors(rank, columns)),
                alpha / rank,
            )
        if is_peft:
            write_peft(one.folder, one.products, r=rank, lora_alpha=alpha)
        else:
            numbers = {key.removesuffix(".weight"): {"A": down, "B": up} for key, (up, down, _) in one.products.items()}
            lora = {
                "target": "|".join(chosen),
                "adapter": "lora",
                "rank": rank,
                "alpha": alpha,
                "allow_oversized": True,
            }
            rules: list[dict[str, Any]] = [lora]
            if not any(known.replaced for known in self.adapters.values()):
                one.replaced["norm.weight"] = torch.arange(3).to(self.tensors["norm.weight"].dtype)
                numbers["norm"] = {"value": one.replaced["norm.weight"]}
                rules.append({"target": "norm", "adapter": "full"})
            write_native(one.folder, self.tensors, numbers, *rules)
        self.adapters[name] = one

    def ask(self, what: str, names: Sequence[str], undo: str, jobs: int) -> dict[str, Any]:
        self.count += 1
        adapters: Any = {name: str(self.adapters[name].folder) for name in names} if what == "merge" else sorted(names)
        return {
            "do": what, "from": str(self.live), "adapters": adapters, "out": str(self.root / f"out-{self.count}"),
            "undo": undo, "jobs": jobs, "block": self.block,
        }  # fmt: skip

    def drawn(self, data: st.DataObject) -> tuple[dict[str, Any], frozenset[str], str]:
        """Return something to do, the set that it leads to, and what is then kept for the way back."""
        outside = sorted(set(self.adapters) - self.inside)
        whats = (["merge"] if outside else []) + (["unmerge"] if self.inside else [])
        assume(whats)
        what, jobs = data.draw(st.sampled_from(whats)), data.draw(st.sampled_from([1, 1, 2]))
        chosen = data.draw(
            st.lists(st.sampled_from(outside if what == "merge" else sorted(self.inside)), min_size=1, unique=True)
        )
        undo = data.draw(st.sampled_from(UNDO)) if what == "merge" else self.undo
        after = self.inside | set(chosen) if what == "merge" else self.inside - set(chosen)
        return self.ask(what, chosen, undo, jobs), after, undo

    def can_be_done(self, after: frozenset[str]) -> bool:
        return self.files(after) is not None and not (self.inside and self.undo == "none")

    def came_to(self, ask: dict[str, Any], after: frozenset[str], undo: str) -> None:
        self.live, self.inside, self.undo, self.last, self.is_new = Path(ask["out"]), after, undo, ask, True

    def refused(self, ask: dict[str, Any], act: Any = do) -> None:
        """What cannot be done changes nothing, the base's folder included."""
        before = snapshot(self.root)
        with pytest.raises(StateError):
            act(ask)
        assert snapshot(self.root) == before

    def give_up(self) -> None:
        """No way back: begin again."""
        self.live, self.inside, self.undo, self.last, self.is_new = self.base, frozenset(), "residue", None, True

    @rule(data=st.data(), elsewhere=st.integers(0, 3))
    def act(self, data: st.DataObject, elsewhere: int) -> None:
        """Merge or unmerge, here or in another process."""
        ask, after, undo = self.drawn(data)
        doing = other.do if other is not None and not elsewhere else do
        if not self.can_be_done(after):
            self.refused(ask, doing)
            if self.undo == "none" and self.inside:
                self.give_up()
            return
        assert not doing(ask)
        self.came_to(ask, after, undo)

    @rule(
        data=st.data(),
        where=st.integers(0, 110),
        number=st.sampled_from([*ERRORS, None]),
        phase=st.sampled_from(PHASES),
    )
    def act_while_it_fails(self, data: st.DataObject, where: int, number: int | None, phase: str) -> None:
        """An error of the disk, or the end of the process (no number), at any call; then the same command again."""
        ask, after, undo = self.drawn(data)
        if not self.can_be_done(after):
            return
        ask["jobs"] = 1
        disk = Hooked()
        disk.watched = EVERYTHING if number == errno.EIO and phase == "before" else WRITES

        def fail() -> None:
            raise OSError(number, os.strerror(number or 0))

        if number is None:
            stop_at(disk, where, phase, die)
        else:
            phase = "within" if phase != "after" else phase
            disk.strike = lambda at, now, _: fail() if at == where and now == phase else None
        before, is_done, was_killed = snapshot(self.root), False, False
        with faulty(disk, self.root):
            try:
                is_done = not do(ask)
            except Killed:
                was_killed = True
            except SurgeryError as error:
                assert error.what
        disk.bury()
        out = Path(ask["out"])
        if not was_killed and not out.exists():
            left = {
                name
                for name in snapshot(self.root).keys() - before.keys()
                if not name.startswith(f".{out.name}.surgery/")
            }
            assert not left, "left behind"
        is_there = out.exists()
        assert is_there or not is_done
        if is_there:
            assert bytes_of(out) == self.files(after), "mixed"
        assert do(ask) is is_there, "done twice, or lost"
        self.came_to(ask, after, undo)

    @precondition(lambda self: self.last is not None)
    @rule(jobs=st.sampled_from([1, 2]))
    def again(self, jobs: int) -> None:
        """What was done is not done again, also when somebody else asks for it."""
        before = {path: path.stat().st_mtime_ns for path in self.live.rglob("*")}
        assert self.last is not None
        assert do({**self.last, "jobs": jobs})
        assert {path: path.stat().st_mtime_ns for path in self.live.rglob("*")} == before

    @precondition(lambda self: self.inside and self.undo != "none")
    @rule(data=st.data())
    def merge_twice(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.inside)))
        ask = self.ask("merge", [], "residue", 1)
        ask["adapters"] = {data.draw(st.sampled_from([name, "another-name"])): str(self.adapters[name].folder)}
        self.refused(ask)

    @rule(count=st.integers(1, 2))
    def threads(self, count: int) -> None:
        torch.set_num_threads(count)

    @precondition(lambda self: (self.live / RECEIPT).exists())
    @rule(data=st.data(), places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=4, max_size=4))
    def flip(self, data: st.DataObject, places: list[tuple[float, int]]) -> None:
        """One bit of any file of the folder, four times: nothing is made of it, and nothing else changes."""
        names = sorted(snapshot(self.live))
        for place, bit in places:
            self.flip_one(self.live / data.draw(st.sampled_from(names)), place, bit)

    def flip_one(self, path: Path, place: float, bit: int) -> None:
        whole = path.read_bytes()
        if not whole:
            return
        changed = bytearray(whole)
        changed[min(int(place * len(whole)), len(whole) - 1)] ^= 1 << bit
        path.write_bytes(changed)
        before = snapshot(self.root)
        with pytest.raises(SurgeryError):
            verify_checkpoint(self.live, jobs=1, registry=REGISTRY)
        asks = [self.ask("unmerge", [], self.undo, 1)]
        outside = sorted(set(self.adapters) - self.inside)
        if self.inside and outside:
            asks.append(self.ask("merge", outside, "residue", 1))
        for ask in asks:
            with pytest.raises(SurgeryError):
                do(ask)
        assert snapshot(self.root) == before
        path.write_bytes(whole)


def explore(examples: int, steps: int, *phases: Phase) -> None:
    global other  # noqa: PLW0603 - the machine's rules have no fixtures
    other = OtherProcess()
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=examples, stateful_step_count=steps, deadline=None, phases=phases,
                suppress_health_check=list(HealthCheck), derandomize=len(phases) == 1, database=None,
            ),
        )  # fmt: skip
    finally:
        other.end()
        other = None


def test_the_machine() -> None:
    """The same sequences each time, and none of the minutes that making a failing one small can take."""
    explore(200, 16, Phase.generate)


@pytest.mark.slow
def test_the_machine_for_long() -> None:
    explore(1500, 30, Phase.generate, Phase.shrink)


def test_one_process_merges_and_another_takes_out(quick_path: Path) -> None:
    here = World(quick_path)
    ask = {"do": "merge", "from": str(quick_path / "base"), "undo": "residue", "jobs": 2, "block": BLOCKS[0],
           "adapters": {one.name: str(one.folder) for one in here.adapters}, "out": str(quick_path / "out")}  # fmt: skip
    back = {**ask, "do": "unmerge", "from": ask["out"], "adapters": [], "out": str(quick_path / "again")}
    for one, name in ((ask, "merge"), (back, "unmerge")):
        process = OtherProcess()
        try:
            assert not process.do(one)
        finally:
            process.end()
        assert snapshot(Path(str(one["out"]))) == here.results[name]
