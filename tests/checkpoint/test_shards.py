"""A merge as jobs, one for each file: the same bytes on every engine, and what was finished is not done again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from merging import MIXED, base_of, saved

from surgery import merge_checkpoint, unmerge_checkpoint
from surgery.checkpoint import RECEIPT
from surgery.checkpoint.shards import Shard
from surgery.engine import InProcess, LocalPool, RayCluster
from surgery.errors import StateError
from surgery.registry import load_registry

HERE = Path(__file__).parent
REGISTRY = load_registry()


class Counting(InProcess):
    """Notes what it is given, and ends before the job number `dies`."""

    def __init__(self, dies: int = -1) -> None:
        self.dies, self.done = dies, list[str]()

    def map(self, work, jobs):
        for job, result in super().map(work, jobs):
            self.done.append(job.title)
            yield job, result
            if len(self.done) == self.dies:
                raise KeyboardInterrupt


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts that lie in several files are among its parameters."""
    folder = tmp_path_factory.mktemp("made")
    saved(base_of(folder / "base", "MixtralForCausalLM", torch.bfloat16), folder / "a", *MIXED)
    merge_checkpoint(folder / "base", folder / "a", folder / "want", registry=REGISTRY)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "world")
    return tmp_path / "world"


def merged(world: Path, engine: object, out: str | None = "out", **options: object):
    place = {"out": world / out} if out else {"in_place": True}
    return merge_checkpoint(world / "base", world / "a", **place, engine=engine, registry=REGISTRY, **options)


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*")]


def test_the_bytes_are_those_of_threads(world: Path) -> None:
    engine = Counting()
    merged(world, engine)
    assert len(engine.done) == len(list((world / "base").glob("*.safetensors"))) > 2
    ours, theirs = everything(world / "out"), everything(world / "want")
    assert ours.keys() == theirs.keys()
    for name in (RECEIPT,):
        del ours[name], theirs[name]
    assert ours == theirs
    assert not left(world)
    unmerge_checkpoint(world / "out", world / "back", registry=REGISTRY)
    assert {name: data for name, data in everything(world / "back").items() if name != RECEIPT} == everything(
        world / "base"
    )


def test_reports_are_summed_over_files(world: Path) -> None:
    options = {"registry": REGISTRY}
    plain = merge_checkpoint(world / "base", world / "a", world / "plain", **options)
    ours = merged(world, InProcess())
    assert [one.name for one in ours.tensors] == [one.name for one in plain.tensors]
    assert [one.elements for one in ours.tensors] == [one.elements for one in plain.tensors]
    assert ours.residue_bytes == plain.residue_bytes


@pytest.mark.parametrize("undo", ["copy", "none"])
def test_in_place_and_another_dtype(undo: str, world: Path) -> None:
    options = {"dtype": "float32", "undo": undo}
    merge_checkpoint(world / "base", world / "a", world / "threads", registry=REGISTRY, **options)
    merged(world, InProcess(), None, **options)
    ours, theirs = everything(world / "base"), everything(world / "threads")
    del ours[RECEIPT], theirs[RECEIPT]
    assert ours == theirs
    assert not left(world / "base")


@pytest.mark.parametrize("out", ["out", None])
def test_what_was_finished_is_not_done_again(out: str | None, world: Path) -> None:
    before, first = everything(world / "base"), Counting(dies=2)
    with pytest.raises(KeyboardInterrupt):
        merged(world, first, out)
    assert everything(world / "base").keys() >= before.keys()
    assert not (world / "out").exists()
    second = Counting()
    merged(world, second, out)
    files = sorted(path.name for path in (world / "want").glob("*.safetensors"))
    assert sorted(first.done + second.done) == files
    got = world / (out or "base")
    assert all((got / name).read_bytes() == (world / "want" / name).read_bytes() for name in files)
    assert left(world) == left(got) == []


@pytest.mark.parametrize("what", ["weights", "header", "residue", "base", "adapter"])
def test_results_that_are_not_right_are_made_again(what: str, world: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        merged(world, Counting(dies=1))
    (result,) = (world / ".out.surgery-shards").iterdir()
    (weights,) = result.glob("*.safetensors")
    if what in {"weights", "header", "residue"}:
        path = result / "surgery" / "residue.bin" if what == "residue" else weights
        data = bytearray(path.read_bytes())
        data[20 if what == "header" else -1] ^= 1
        path.write_bytes(data)
    elif what == "base":
        os.utime(world / "base" / weights.name)
    else:
        path = world / "a" / "adapter.json"
        path.write_text(path.read_text().replace('"name"', '"name" '))  # the same adapter, said otherwise
    engine = Counting()
    merged(world, engine)
    assert (weights.name in engine.done) == (what != "adapter")
    assert (world / "out" / weights.name).read_bytes() == (world / "want" / weights.name).read_bytes()


DRIVER = """
import os, signal, sys
from pathlib import Path
from surgery import merge_checkpoint
from surgery.engine import LocalPool, RayCluster
if __name__ == "__main__":
    world, engine = Path(sys.argv[1]), sys.argv[2]
    def tell(done, total, name):
        print(name, flush=True)
        if sys.argv[3] == "driver":
            os.kill(os.getpid(), signal.SIGKILL)
    chosen = RayCluster(2) if engine == "ray" else LocalPool(2)
    merge_checkpoint(world / "base", world / "a", world / "out", engine=chosen, progress=tell)
    chosen.close()
"""


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_driver_that_is_killed(engine: str, world: Path) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    (world / "drive.py").write_text(DRIVER)
    words = [sys.executable, world / "drive.py", world, engine, "driver"]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert told.returncode == -signal.SIGKILL, told.stderr
    finished = {path for path in (world / ".out.surgery-shards").glob("[!.]*") if (path / RECEIPT).is_file()}
    assert finished
    counting = Counting()
    merged(world, counting)
    files = sorted(path.name for path in (world / "want").glob("*.safetensors"))
    assert len(counting.done) <= len(files) - 1
    assert all((world / "out" / name).read_bytes() == (world / "want" / name).read_bytes() for name in files)


def test_on_ray(world: Path) -> None:
    pytest.importorskip("ray")
    (world / "drive.py").write_text(DRIVER)
    words = [sys.executable, world / "drive.py", world, "ray", "nobody"]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    files = sorted(path.name for path in (world / "want").glob("*.safetensors"))
    assert sorted(told.stdout.split()) == files
    assert all((world / "out" / name).read_bytes() == (world / "want" / name).read_bytes() for name in files)


class Fatal:
    """Work that takes its worker along, once."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, job: Shard) -> str:
        if not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return job.title


def test_ray_does_the_jobs_of_a_lost_worker_again(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    script = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_shards import Fatal
from surgery.checkpoint.shards import Shard
from surgery.engine import RayCluster
jobs = [Shard(f"s{n}", True, "p", Path("x"), f"k{n}") for n in range(3)]
engine = RayCluster(2)
import ray
print(sorted(result for _, result in engine.map(Fatal(Path(sys.argv[1])), jobs)))
engine.close()
"""
    (tmp_path / "drive.py").write_text(script)
    paths = [str(HERE), str(HERE.parent / "contract"), str(HERE.parent / "operation")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, tmp_path / "drive.py", tmp_path / "mark", *paths]
    told = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert told.stdout.endswith("['s0', 's1', 's2']\n"), told.stderr  # Ray tells of the lost worker before
    assert (tmp_path / "mark").exists()


def test_without_ray_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StateError, match="Ray is not installed") as caught:
        RayCluster()
    assert "pip install" in caught.value.hint


def test_a_mistake_in_a_shard_is_told_as_it_is(world: Path) -> None:
    with pytest.raises(StateError, match="does not hold its numbers"):
        merged(world, LocalPool(2), dtype="float16")
