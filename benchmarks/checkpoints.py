"""Merging checkpoints on disk beside `cp`: wall time, CPU, memory, and bytes kept.

    python benchmarks/checkpoints.py --gigabytes 0.1 0.5 1 --repeat 3

A synthetic checkpoint in bfloat16 (a Llama's shapes, shards of about 1 GB) is made under --where and removed at the end. Every round runs
all contestants, in turn, each in a process of its own; medians are shown, and their ratio to `cp` of the same round. Where peft is installed,
`merge_and_unload` and `save_pretrained` run beside; so does mergekit. All writers sync what they wrote. Imports are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

WIDTH, INNER = 2048, 5632
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH, WIDTH), "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip


def make(folder: Path, size: float, ratio: float = 1e-2) -> None:  # noqa: C901 - one checkpoint, told from top to bottom
    """Write base, and PEFT adapters of rank 16 on q and v, and on all projections."""
    import torch
    from safetensors.torch import save_file

    per_layer = sum(a * b for a, b in SHAPES.values()) * 2
    layers = max(1, round((size * 1e9 - 32000 * WIDTH * 4) / per_layer))
    base = folder / "base"
    base.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, std: float = 0.02) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * std

    held: dict[str, torch.Tensor] = {"model.embed_tokens.weight": normal(32000, WIDTH).bfloat16()}
    held |= {"lm_head.weight": normal(32000, WIDTH).bfloat16(), "model.norm.weight": torch.ones(WIDTH).bfloat16()}
    shards: list[dict[str, torch.Tensor]] = [held]
    adapters: dict[str, dict[str, torch.Tensor]] = {"qv": {}, "all": {}}
    files: dict[str, int] = dict.fromkeys(held, 0)

    def flush() -> None:
        save_file(shards[-1], base / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
        files.update({name: len(shards) for name in shards[-1]})

    for layer in range(layers):
        if sum(tensor.nbytes for tensor in shards[-1].values()) > 1e9:
            flush()
            shards[-1].clear()
            shards.append({})
        for name, (rows, columns) in SHAPES.items():
            path = f"model.layers.{layer}.{name}"
            shards[-1][f"{path}.weight"] = normal(rows, columns).bfloat16()
            std = (0.02 * ratio) ** 0.5 / 2
            down, up = normal(16, columns, std=std), normal(rows, 16, std=std)
            for which, chosen in adapters.items():
                if which == "all" or path.endswith(("q_proj", "v_proj")):
                    chosen |= {
                        f"base_model.model.{path}.lora_A.weight": down,
                        f"base_model.model.{path}.lora_B.weight": up,
                    }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shards[-1][f"model.layers.{layer}.{norm}.weight"] = torch.ones(WIDTH).bfloat16()
    flush()
    index = {name: f"part-{number}.safetensors" for name, number in files.items()}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 32000,
        "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    for which, tensors in adapters.items():
        (folder / which).mkdir()
        save_file(tensors, folder / which / "adapter_model.safetensors")
        targets = ["q_proj", "v_proj"] if which == "qv" else list(ALL)
        said = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "target_modules": targets, "task_type": "CAUSAL_LM"}
        (folder / which / "adapter_config.json").write_text(json.dumps(said))


def sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.close(file)


def one(how: str, folder: Path, out: Path) -> dict[str, float]:
    """Run one contestant in this process."""
    kept = 0
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if how.startswith("surgery"):
        import surgery

        registry = surgery.load_registry()
        warm()
    elif how.startswith("peft"):
        import peft
        import transformers
    elif how.startswith("mergekit"):
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions
    imports = peak()
    start, cpu = time.perf_counter(), time.process_time()
    if how == "cp":
        subprocess.run(["cp", "-r", str(folder / "base"), str(out)], check=True)
        sync(out)
    elif how.startswith("surgery"):
        _, which, *options = how.split()
        report = surgery.merge_checkpoint(
            folder / "base", folder / which, out, registry=registry, fast="fast" in options,
            undo="none" if "none" in options else "residue",
        )  # fmt: skip
        kept = report.residue_bytes
    elif how.startswith("mergekit"):
        said = {"models": [{"model": f"{folder / 'base'}+{folder / how.split()[1]}"}], "merge_method": "passthrough"}
        # It writes a merged copy of the model to its cache first, and the result from that; both are its way.
        options = MergeOptions(lora_merge_cache=str(folder.parent / "cache"), copy_tokenizer=False)
        run_merge(MergeConfiguration.model_validate(said | {"dtype": "bfloat16"}), str(out), options)
        sync(out)
        shutil.rmtree(folder.parent / "cache")
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
        peft.PeftModel.from_pretrained(model, folder / how.split()[1]).merge_and_unload().save_pretrained(out)
        sync(out)
    used = time.process_time() - cpu + (resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime if how == "cp" else 0)
    return {"wall": time.perf_counter() - start, "cpu": used, "rss": (peak() - imports) / 1e6, "kept": kept}


def warm() -> None:
    """Load libraries and compiled loops, as they are loaded once, whatever is merged afterwards."""
    import torch

    from surgery.checkpoint.report import Tally
    from surgery.exact import Delta, Product, encode, merge_block, passage

    weight, added = torch.randn(512, 512).bfloat16(), torch.empty(512, 512, dtype=torch.float64)
    delta = Delta([Product(torch.ones(512, 1), torch.ones(1, 512))], (512, 512))
    merged = merge_block(weight, delta, 0, added=added)
    Tally().add(weight, merged, added)
    encode(weight, merged, added)
    passage(weight, delta, 0, correct=True, out=merged, with_residue=True)


def peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def plot(told: list[dict[str, Any]], file: Path) -> None:
    """Draw wall time and memory of each contestant over the size of the checkpoint."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "surgery"
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    colours = {"cp": "#000000", "surgery all": "#0072B2", "surgery qv": "#009E73", "peft all": "#D55E00"}
    for name in dict.fromkeys(one["contestant"] for one in told):
        rows = sorted((one["gigabytes"], one["wall"], one["rss"]) for one in told if one["contestant"] == name)
        sizes, walls, memory = zip(*rows, strict=True)
        axes[0].plot(sizes, walls, marker="o", label=name, color=colours.get(name))
        if name != "cp":
            axes[1].plot(sizes, memory, marker="o", label=name, color=colours.get(name))
    for axis, what in zip(axes, ("wall time, s", "peak memory over imports, MB"), strict=True):
        axis.set(xlabel="checkpoint, GB (bfloat16)", ylabel=what, xlim=(0, None), ylim=(0, None))
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.1, 0.5, 1.0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--where", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--only", nargs="+", metavar="CONTESTANT", help="cp and these, such as 'surgery all'")
    parser.add_argument("--json", type=Path, help="write the medians there")
    parser.add_argument("--plot", type=Path, help="draw --json's medians over the size there, and run nothing")
    parser.add_argument("--one", nargs=3, metavar=("HOW", "FOLDER", "OUT"))
    given = parser.parse_args()
    if given.plot:
        plot(json.loads(given.json.read_text()), given.plot)
        return
    if given.one:
        print(json.dumps(one(given.one[0], Path(given.one[1]), Path(given.one[2]))))
        return
    beside = [f"{tool} {which}" for tool in ("peft", "mergekit") if find_spec(tool) for which in ("qv", "all")]
    contestants = ["cp", "surgery qv", "surgery all", "surgery all fast", "surgery all fast none", "surgery all none"]
    if given.only:
        contestants, beside = ["cp", *(one for one in (*contestants[1:], *beside) if one in given.only)], []
    told = []
    print(f"{'GB':>5}  {'contestant':<22}  {'wall s':>7}  {'x cp':>5}  {'CPU s':>6}  {'RSS MB':>7}  kept B/param")
    for size in given.gigabytes:
        with tempfile.TemporaryDirectory(dir=given.where, prefix="surgery-bench-") as name:
            folder = Path(name)
            make(folder / "it", size)
            bytes_ = sum(path.stat().st_size for path in (folder / "it" / "base").glob("*.safetensors"))
            found: dict[str, list[dict[str, float]]] = defaultdict(list)
            for _ in range(given.repeat):
                for how in (*contestants, *beside):
                    out = folder / "out"
                    command = [sys.executable, __file__, "--one", how, str(folder / "it"), str(out)]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    found[how].append(json.loads(done.stdout.splitlines()[-1]))
                    shutil.rmtree(out)
            for how, rounds in found.items():
                median = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
                times = statistics.median(a["wall"] / b["wall"] for a, b in zip(rounds, found["cp"], strict=True))
                kept = median["kept"] / (bytes_ / 2)
                told.append({"gigabytes": bytes_ / 1e9, "contestant": how, "times_cp": times, **median})
                print(
                    f"{bytes_ / 1e9:5.2f}  {how:<22}  {median['wall']:7.2f}  {times:5.2f}  {median['cpu']:6.2f}  "
                    f"{median['rss']:7.0f}  {kept:.4f}",
                    flush=True,
                )
    if given.json is not None:
        given.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
