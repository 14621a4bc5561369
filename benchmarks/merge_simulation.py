"""How long would merging a 405-billion-parameter checkpoint take, on so many machines with such disks? A simulation.

    python benchmarks/merge_simulation.py --nodes 1 2 4 8 16 32 --cores 16 --disk 2 --shared 10 40 --plot FILE.svg

What is measured here, and what is assumed:

- Measured, on this machine, in memory (/dev/shm), by merging a small checkpoint with one thread: nanoseconds of CPU for each parameter that a
  LoRA of rank 16 changes (reading, summing, rounding, residue, sha256, writing), for each byte that is copied and hashed, and for each byte of the adapter.
- Shapes are those of Llama-3.1-405B in bfloat16 (126 layers, hidden 16384, intermediate 53248, 128 heads, 8 key-value heads, vocabulary 128256),
  cut into files of at most 5 GB in the order of layers, as transformers does; every projection of attention and MLP is targeted.
- Every job hashes the whole adapter, and looks for NaN in it; it is in the page cache after the first.
- A file is a job of one core (`surgery merge --engine ray`). A core takes the next job, the largest first. A job's reading, computing and writing overlap:
  it advances as fast as its core, or its share of the disk, allows. Bytes read and written count alike, and a disk is shared max-min fairly.
- `--disk`: GB/s of a disk in every node, which already holds the files that the node works on (no network). `--shared`: GB/s of one file system for all.
- Each core first imports (`--start` seconds). At the end the driver joins the residue (--residue bytes for each parameter), on one disk.
- Cores of other machines are taken to be like this one's, and memory bandwidth to suffice for all of a node's. Nothing fails.

--check merges a small checkpoint in two processes, and compares their CPU time with the model's. It checks costs and jobs, not the sharing of disks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

GIGA = 1e9
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
LAYERS, HIDDEN, INNER, HEADS, KEY_HEADS, VOCABULARY = 126, 16384, 53248, 128, 8, 128256
FILE, RANK = 5 * GIGA, 16


@dataclass
class Job:
    """One file: parameters that are computed, bytes that are copied, and bytes of the adapter, which every job reads."""

    computed: int = 0
    copied: int = 0
    adapter: int = 0

    @property
    def size(self) -> int:
        return self.computed * 2 + self.copied

    def core(self, costs: Costs) -> float:
        return self.computed * costs.computed + self.copied * costs.copied + self.adapter * costs.adapter


@dataclass(frozen=True)
class Costs:
    """Seconds of one core for each computed parameter, for each copied byte, and for each byte of an adapter read."""

    computed: float
    copied: float
    adapter: float


def files() -> list[Job]:
    """The files of the checkpoint."""
    narrow = HIDDEN * KEY_HEADS // HEADS
    layer = [HIDDEN * HIDDEN, HIDDEN * narrow, HIDDEN * narrow, HIDDEN * HIDDEN, *[HIDDEN * INNER] * 3]
    tensors = [(VOCABULARY * HIDDEN, False)]
    for _ in range(LAYERS):
        tensors += [*((size, True) for size in layer), (HIDDEN, False), (HIDDEN, False)]
    tensors += [(HIDDEN, False), (VOCABULARY * HIDDEN, False)]
    # Both factors of seven maps, in float32.
    adapter = 4 * RANK * LAYERS * (2 * 2 * HIDDEN + 2 * (HIDDEN + narrow) + 3 * (HIDDEN + INNER))
    jobs = [Job(adapter=adapter)]
    for size, is_computed in tensors:
        if jobs[-1].size and jobs[-1].size + 2 * size > FILE:
            jobs.append(Job(adapter=adapter))
        if is_computed:
            jobs[-1].computed += size
        else:
            jobs[-1].copied += 2 * size
    return jobs


def simulate(  # noqa: PLR0913 - machines are told by what they are
    jobs: list[Job], costs: Costs, nodes: int, cores: int, *, disk: float, shared: float, start: float
) -> float:
    """Return seconds until the last job ends. `disk` is a node's own, in bytes a second; 0 where there is `shared`."""
    waiting = sorted(jobs, key=lambda job: job.core(costs))
    running: list[tuple[int, Job, float]] = []  # node, job, what is left of it (1 to 0)
    free = [node for _ in range(cores) for node in range(nodes)][::-1]
    now = start
    while waiting or running:
        while waiting and free:
            running.append((free.pop(), waiting.pop(), 1.0))
        groups: dict[int, list[int]] = {}
        for index, (node, _, _) in enumerate(running):
            groups.setdefault(node if disk else 0, []).append(index)
        rates = [0.0] * len(running)
        for group in groups.values():
            room, left = disk or shared, len(group)
            # Those that want least of the disk get it; the others share what remains.
            for index in sorted(group, key=lambda i: 2 * running[i][1].size / running[i][1].core(costs)):
                job = running[index][1]
                got = min(2 * job.size / job.core(costs), room / left)
                rates[index], room, left = got / (2 * job.size), room - got, left - 1
        step = min(left / rate for (_, _, left), rate in zip(running, rates, strict=True))
        now += step
        after = []
        for (node, job, left), rate in zip(running, rates, strict=True):
            if left - rate * step > 1e-9:
                after.append((node, job, left - rate * step))
            else:
                free.append(node)
        running = after
    return now


WIDTH = 2048


def small(folder: Path, count: int) -> None:
    """Write a checkpoint of `count` files with two matrices each, and two adapters: on all, and on one."""
    import json

    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    (folder / "base").mkdir(parents=True)
    places, factors = {}, {}
    for number in range(count):
        held = {f"m{number}.{half}.weight": torch.randn(4 * WIDTH, WIDTH, generator=generator) * 0.02 for half in "ab"}
        save_file({name: one.bfloat16() for name, one in held.items()}, folder / "base" / f"part-{number}.safetensors")
        places |= dict.fromkeys(held, f"part-{number}.safetensors")
        for name in held:
            path = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{path}.lora_A.weight"] = torch.randn(16, WIDTH, generator=generator)
            factors[f"{path}.lora_B.weight"] = torch.randn(4 * WIDTH, 16, generator=generator) * 5e-5
    (folder / "base" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    one = {name: tensor for name, tensor in factors.items() if ".m0.a." in name}
    for name, held in (("all", factors), ("one", one)):
        (folder / name).mkdir()
        save_file(held, folder / name / "adapter_model.safetensors")
        (folder / name / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 16, "lora_alpha": 16}')


def measured(folder: Path, count: int) -> Costs:
    """Merge with one thread in a process of its own, and return what it costs."""
    elements = 4 * WIDTH * WIDTH
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        every, one = (min(pool.apply(_cpu, (folder, name)) for _ in range(3)) for name in ("all", "one"))
    # Two equations: all matrices computed; one computed, and the others copied.
    total = 2 * count
    computed = every[0] / (total * elements)
    copied = (one[0] - elements * computed) / ((total - 1) * elements * 2)
    return Costs(computed, copied, every[1] / (folder / "all" / "adapter_model.safetensors").stat().st_size)


def _cpu(folder: Path, name: str) -> tuple[float, float]:
    """Return seconds of CPU that a merge takes, adapters apart, and that those take."""
    from surgery import merge_checkpoint
    from surgery.checkpoint.saved import TensorFile

    merge_checkpoint(folder / "base", folder / "one", folder / "warm", jobs=1)
    begin = time.process_time()
    TensorFile(folder / name / "adapter_model.safetensors")
    loaded = time.process_time()
    merge_checkpoint(folder / "base", folder / name, folder / "out", jobs=1)
    merged = time.process_time()
    for made in ("warm", "out"):
        shutil.rmtree(folder / made)
    return merged - loaded - (loaded - begin), loaded - begin


def check(folder: Path, count: int, costs: Costs) -> tuple[float, float]:
    """Return seconds of CPU that the workers take, and that the model says, without their imports."""
    from surgery import merge_checkpoint
    from surgery.engine import LocalPool

    adapter = (folder / "all" / "adapter_model.safetensors").stat().st_size
    said = sum(Job(computed=2 * 4 * WIDTH * WIDTH, adapter=adapter).core(costs) for _ in range(count))

    def spent(times: int) -> float:
        """Of a pool's workers, from their start to their end."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        pool = LocalPool(2)
        for turn in range(times):
            merge_checkpoint(folder / "base", folder / "all", folder / f"out-{turn}", engine=pool)
            shutil.rmtree(folder / f"out-{turn}")
        pool.close()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    once = spent(1)
    return (spent(4) - once) / 3, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--cores", type=int, default=16, help="of each node")
    parser.add_argument("--disk", type=float, nargs="*", default=[2.0], help="GB/s of each node's own disk")
    parser.add_argument("--shared", type=float, nargs="*", default=[10.0, 40.0], help="GB/s of a disk for all")
    parser.add_argument("--start", type=float, default=5.0, help="seconds until a core begins")
    parser.add_argument("--residue", type=float, default=0.0039, help="bytes for each computed parameter")
    parser.add_argument(
        "--costs",
        type=float,
        nargs=3,
        metavar=("NS_PER_PARAMETER", "NS_PER_BYTE", "NS_PER_ADAPTER_BYTE"),
        help="instead of measuring",
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    jobs = files()
    where = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    try:
        if given.costs:
            costs = Costs(*(cost * 1e-9 for cost in given.costs))
        else:
            small(where, 4)
            costs = measured(where, 4)
        computed, size = sum(job.computed for job in jobs), sum(job.size for job in jobs)
        print(
            f"{len(jobs)} files, {size / GIGA:.0f} GB, {computed / size * 2:.1%} of it computed; {given.cores} cores in each node"
        )
        print(
            f"costs of a core: {costs.computed * 1e9:.2f} ns for each parameter computed, {costs.copied * 1e9:.2f} ns for each byte copied, {costs.adapter * 1e9:.2f} ns for each byte of the adapter"
        )
        print(
            f"start {given.start:.0f} s; residue {computed * given.residue / GIGA:.1f} GB, joined by one reader and writer at the end"
        )
        if given.check:
            found, said = check(where, 4, costs)
            print(
                f"check: two workers take {found:.2f} s of CPU for {4 * 8 * WIDTH * WIDTH / 1e6:.0f} million parameters; the model says {said:.2f} s"
            )
    finally:
        shutil.rmtree(where)
    ways = [(f"{rate:g} GB/s in each node", rate * GIGA, 0.0) for rate in given.disk]
    ways += [(f"{rate:g} GB/s for all", 0.0, rate * GIGA) for rate in given.shared]
    table: dict[str, list[float]] = {}
    print(f"\n{'minutes':24}" + "".join(f"{nodes:>8}" for nodes in given.nodes) + "  nodes")
    for name, disk, shared in ways:
        joined = 2 * computed * given.residue / (disk or shared)
        table[name] = [
            (simulate(jobs, costs, nodes, given.cores, disk=disk, shared=shared, start=given.start) + joined) / 60
            for nodes in given.nodes
        ]
        print(f"{name:24}" + "".join(f"{minutes:8.1f}" for minutes in table[name]))
    if given.plot:
        plot(given.plot, given.nodes, table)


def plot(path: Path, nodes: list[int], table: dict[str, list[float]]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "surgery"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for name, minutes in table.items():
        axes.plot(nodes, minutes, marker="o", label=name)
    first = next(iter(table.values()))
    axes.plot(
        nodes, [first[0] * nodes[0] / count for count in nodes], color="0.7", linestyle=":", label="in proportion"
    )
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="minutes", title="405 billion parameters, simulated")
    axes.set_xticks(nodes, [str(count) for count in nodes])
    axes.minorticks_off()
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
