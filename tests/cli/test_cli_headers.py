"""A plan of 70 billion parameters from the headers of files that hold no data: no torch, little time and memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_support import ROOT

LAYERS, WIDTH, HIDDEN, KEYS, WORDS = 80, 8192, 28_672, 1024, 128_256
PARAMETERS = 70_553_706_496
LORA = 207_093_760  # rank 16 on the seven linear weights of 80 layers

PROGRAM = """
import resource, sys
from pathlib import Path
from surgery.cli.main import run

def peak():
    # A new process inherits the ru_maxrss of the one that started it, here a test runner that has torch loaded;
    # Linux keeps the peak of this program alone in VmHWM.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(line.split()[1] for line in lines if line.startswith("VmHWM"))

sys.argv = ["surgery", "plan", *sys.argv[1:]]
try:
    run()
except SystemExit as ended:
    heavy = [name for name in ("torch", "transformers", "numpy") if name in sys.modules]
    print(ended.code, peak(), *heavy, file=sys.stderr)
"""


def tensors() -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """Return (shard, name, shape) of a Llama 3 with 70 billion parameters."""
    yield 0, "model.embed_tokens.weight", (WORDS, WIDTH)
    for layer in range(LAYERS):
        prefix, shard = f"model.layers.{layer}", layer // 20
        for name, extent in (("q", WIDTH), ("k", KEYS), ("v", KEYS), ("o", WIDTH)):
            yield shard, f"{prefix}.self_attn.{name}_proj.weight", (extent, WIDTH)
        yield shard, f"{prefix}.mlp.gate_proj.weight", (HIDDEN, WIDTH)
        yield shard, f"{prefix}.mlp.up_proj.weight", (HIDDEN, WIDTH)
        yield shard, f"{prefix}.mlp.down_proj.weight", (WIDTH, HIDDEN)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield shard, f"{prefix}.{norm}.weight", (WIDTH,)
    yield 3, "model.norm.weight", (WIDTH,)
    yield 3, "lm_head.weight", (WORDS, WIDTH)


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a header, and extend the file to the size it would have: the rest is a hole that takes no disk."""
    table, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        table[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for shard, name, shape in tensors():
        shards.setdefault(f"model-{shard + 1:05}-of-00004.safetensors", {})[name] = shape
    for file, shapes in shards.items():
        try:
            write_shard(tmp_path / file, shapes)
        except OSError as error:
            pytest.skip(f"no sparse files of this size here: {error}")
    index = {"weight_map": {name: file for file, shapes in shards.items() for name in shapes}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    return tmp_path


@pytest.mark.parametrize("option", ["--from-headers", "--quiet"])
def test_plan_without_torch(option: str, llama: Path, spec: Callable[..., Path]) -> None:
    path = spec(r"- {role: (attention|mlp)\..*, adapter: lora, rank: 16, expect: 560}")
    command = [sys.executable, "-c", PROGRAM, path, llama, "--json", option]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    code, kilobytes, *heavy = done.stderr.split()
    found = json.loads(done.stdout)
    assert (code, heavy) == ("0", [])
    assert found["model"]["parameters"] == PARAMETERS
    assert found["trainable"]["total"] == LORA
    assert int(kilobytes) < 700 * 1024
