"""What starting costs: `python benchmarks/start_up.py [--rounds N]`. Whole processes, interleaved, medians.

Prints what `import surgery` adds to Python, `surgery --help`, and the plan of a 70B-parameter Llama from its
configuration (against `import torch`) and from safetensors headers (which import no torch).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "vocab_size": 128256,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def run(command: list[str]) -> tuple[float, float]:
    """Return wall seconds and peak resident MiB of one process."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled; an editable one compiles itself once
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env, text=True)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def write_headers(folder: Path) -> None:
    """Write a sharded checkpoint of the 70B shape whose files are holes: headers are real, weights take no disk."""
    width, inner, keys = 8192, 28672, 1024
    layer = {
        "input_layernorm.weight": [width],
        "post_attention_layernorm.weight": [width],
        "self_attn.q_proj.weight": [width, width],
        "self_attn.k_proj.weight": [keys, width],
        "self_attn.v_proj.weight": [keys, width],
        "self_attn.o_proj.weight": [width, width],
        "mlp.gate_proj.weight": [inner, width],
        "mlp.up_proj.weight": [inner, width],
        "mlp.down_proj.weight": [width, inner],
    }
    weight_map: dict[str, str] = {}
    for shard in range(16):
        tensors = {
            f"model.layers.{i}.{name}": shape for i in range(5 * shard, 5 * shard + 5) for name, shape in layer.items()
        }
        if shard == 0:
            tensors["model.embed_tokens.weight"] = [128256, width]
        if shard == 15:
            tensors |= {"model.norm.weight": [width], "lm_head.weight": [128256, width]}
        name = f"model-{shard + 1:05}-of-00016.safetensors"
        header, offset = {}, 0
        for tensor, shape in tensors.items():
            size = 2 * (shape[0] if len(shape) == 1 else shape[0] * shape[1])
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
            weight_map[tensor] = name
        raw = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            file.truncate(8 + len(raw) + offset)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    python = sys.executable
    script = str(Path(python).with_name("surgery"))
    with tempfile.TemporaryDirectory() as name:
        config, headers = Path(name) / "config", Path(name) / "headers"
        for folder in (config, headers):
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(LLAMA_70B))
        write_headers(headers)
        spec = str(Path(name) / "spec.yaml")
        Path(spec).write_text(
            "version: 1\nname: llama\nrules:\n  - {role: (attention|mlp)\\..*, adapter: lora, rank: 16}\n"
        )
        commands = {
            "python -c pass": [python, "-c", "pass"],
            "python -c 'import surgery'": [python, "-c", "import surgery"],
            "surgery --help": [script, "--help"],
            "python -c 'import torch'": [python, "-c", "import torch"],
            "surgery plan, 70B, config.json": [script, "plan", spec, str(config)],
            "surgery plan, 70B, headers": [script, "plan", spec, str(headers), "--from-headers"],
        }
        for command in commands.values():
            run(command)
        seconds: dict[str, list[float]] = {title: [] for title in commands}
        memory: dict[str, float] = {}
        for _ in range(rounds):
            for title, command in commands.items():
                wall, peak = run(command)
                seconds[title].append(wall)
                memory[title] = max(memory.get(title, 0), peak)
    for title, values in seconds.items():
        print(
            f"{title:<34} {1e3 * statistics.median(values):7.0f} ms  (min {1e3 * min(values):.0f})  {memory[title]:6.0f} MiB"
        )

    def per_round(first: str, second: str) -> list[tuple[float, float]]:
        return list(zip(seconds[first], seconds[second], strict=True))

    added = statistics.median(a - b for a, b in per_round("python -c 'import surgery'", "python -c pass"))
    ratio = statistics.median(a / b for a, b in per_round("surgery plan, 70B, config.json", "python -c 'import torch'"))
    print(f"import surgery adds {1e3 * added:.0f} ms; plan of a 70B config takes {ratio:.2f} times `import torch`")


if __name__ == "__main__":
    main()
