"""Speed of exact merging: `python benchmarks/exact.py [--rounds N] [--rows N] [--threads N]`.

Prints nanoseconds per parameter and core for merging row blocks and for residues, as the least CPU time of N rounds
(wall time counts the neighbours on a shared machine); bytes per parameter of residues; and, with `--copy GB`, the wall
time of merging that many gigabytes of bfloat16 in memory with threads, beside that of `cp` and fsync on this disk.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from surgery.exact import Delta, Product, decode, encode, merge_block, same_bits

WIDTH = 4096
RANK = 16


def least(act: Callable[[], object], rounds: int) -> float:
    """Return the least CPU seconds of `rounds` calls, after one that is not counted."""
    act()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        act()
        times.append(time.process_time() - start)
    return min(times)


def case(dtype: torch.dtype, factor: torch.dtype, ratio: float, rows: int) -> tuple[torch.Tensor, Delta]:
    """Return a weight N(0, 0.02) and an update of `ratio` times its size."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(rows, WIDTH, generator=generator) * 0.02).to(dtype)
    up = (torch.randn(rows, RANK, generator=generator) * (ratio * 0.02 / RANK**0.5)).to(factor)
    down = torch.randn(RANK, WIDTH, generator=generator).to(factor)
    return weight, Delta([Product(up, down)], (rows, WIDTH))


def merging(rows: int, rounds: int) -> None:
    print(f"merge_block, {rows} x {WIDTH}, rank {RANK}: ns per parameter and core")
    print(f"{'weight':10s}{'adapter':10s}{'|dW|/|W|':>9s}{'correct':>9s}{'one slice':>11s}")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for factor in (torch.float32, torch.bfloat16):
            for ratio in (0.01, 0.1, 1.0):
                weight, delta = case(dtype, factor, ratio, rows)
                out = torch.empty_like(weight)
                times = [
                    least(lambda c=is_correct, w=weight, d=delta, o=out: merge_block(w, d, 0, c, o), rounds)
                    for is_correct in (True, False)
                ]
                right, quick = (seconds / weight.numel() * 1e9 for seconds in times)
                print(f"{name(dtype):10s}{name(factor):10s}{ratio:9.2f}{right:9.2f}{quick:11.2f}")


def residues(rows: int, rounds: int) -> None:
    print(f"\nresidues, {rows} x {WIDTH}: bytes per parameter, and ns per parameter and core without the delta")
    print(f"{'weight':15s}{'|dW|/|W|':>9s}{'bytes':>9s}{'encode':>9s}{'decode':>9s}")
    eight = (torch.float8_e4m3fn, torch.float8_e5m2)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, *eight):
        for ratio in (0.001, 0.01, 0.1, 1.0):
            weight, delta = case(dtype, torch.float32, ratio, rows)
            merged, added = merge_block(weight, delta, 0), delta.block(0, rows, dtype == torch.float32)
            blob = encode(weight, merged, added)
            assert same_bits(decode(merged, added, blob), weight).all()
            times = (
                least(lambda w=weight, m=merged, a=added: encode(w, m, a), rounds),
                least(lambda m=merged, a=added, b=blob: decode(m, a, b), rounds),
            )
            there, back = (seconds / weight.numel() * 1e9 for seconds in times)
            print(f"{name(dtype):15s}{ratio:9.3f}{len(blob) / weight.numel():9.5f}{there:9.1f}{back:9.1f}")


def against_copy(gigabytes: float, threads: int, rounds: int) -> None:
    rows = int(gigabytes * 2**30 / 2 / WIDTH)
    weight, delta = case(torch.bfloat16, torch.float32, 0.01, rows)
    out, step = torch.empty_like(weight), 256
    found: dict[str, list[float]] = {"cp + fsync": [], "correct": [], "one slice": []}
    with tempfile.TemporaryDirectory(dir=".") as folder, ThreadPoolExecutor(threads) as pool:
        source, target = Path(folder, "source"), Path(folder, "target")
        with source.open("wb") as file:
            file.write(memoryview(weight.view(torch.uint8).numpy()))
            os.fsync(file.fileno())

        def merge(is_correct: bool) -> None:
            def one(start: int) -> None:
                rows_ = slice(start, start + step)
                merge_block(weight[rows_], delta, start, is_correct, out[rows_])

            list(pool.map(one, range(0, rows, step)))

        def copy() -> None:
            target.unlink(missing_ok=True)
            subprocess.run(["cp", source, target], check=True)
            with target.open("rb") as file:
                os.fsync(file.fileno())

        acts = {"cp + fsync": copy, "correct": lambda: merge(True), "one slice": lambda: merge(False)}
        for _ in range(rounds):
            for label, act in acts.items():
                start = time.perf_counter()
                act()
                found[label].append(time.perf_counter() - start)
    print(f"\n{gigabytes} GB of bfloat16, {threads} threads, wall seconds, least of {rounds}")
    for label, times in found.items():
        print(f"{label:12s}{min(times):8.2f}{min(times) / min(found['cp + fsync']):7.2f} x cp")


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--copy", type=float, metavar="GB", default=0.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.copy:
        against_copy(args.copy, args.threads, args.rounds)
    else:
        merging(args.rows, args.rounds)
        residues(args.rows, args.rounds)


if __name__ == "__main__":
    main()
