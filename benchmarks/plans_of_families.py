"""How long a plan takes for every type that a plugin describes: from `config.json` alone, and from file headers alone.

`python benchmarks/plans_of_families.py` prints a table and the slowest. Each type's default configuration is saved; its
checkpoint is a file with the names and shapes of its model and no weights (a hole). Plans from headers are made one
after the other in one process without torch, as are plans from configurations with the modules that they need loaded.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

from surgery import Spec, load_registry, plan
from surgery.spec import Rule

OVERRIDES = {"lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16}}
EVERYTHING = Spec(name="all", rules=(Rule(role=".*", adapter="lora", rank=2, tied="share", allow_oversized=True),))


def prepare(folder: Path, kind: str) -> bool:
    """Write config.json and a checkpoint's header of a type; return whether its default configuration builds."""
    import torch
    import transformers

    try:
        config = transformers.CONFIG_MAPPING[kind](**OVERRIDES.get(kind, {}))
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(config)
    except Exception:
        return False
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder / kind / "config")
    header, end, seen = {}, 0, set()
    for name, parameter in model.named_parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            size = 4 * parameter.numel()
            header[name] = {"dtype": "F32", "shape": list(parameter.shape), "data_offsets": [end, end + size]}
            end += size
    raw = json.dumps(header).encode()
    (folder / kind / "headers").mkdir()
    (folder / kind / "headers" / "config.json").write_bytes((folder / kind / "config" / "config.json").read_bytes())
    with (folder / kind / "headers" / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return True


def measure(folder: Path, kinds: list[str], source: str) -> dict[str, float]:
    """Return type -> seconds of one plan."""
    registry = load_registry()
    taken: dict[str, float] = {}
    for kind in kinds:
        start = time.perf_counter()
        decided = plan(EVERYTHING, folder / kind / source, registry)
        taken[kind] = time.perf_counter() - start
        assert decided.origin == source
        assert decided.edits
    return taken


def main() -> None:
    """Print what the plans took."""
    warnings.simplefilter("ignore")
    if len(sys.argv) > 1:  # one source, in a process of its own
        folder, source, *kinds = sys.argv[1:]
        print(json.dumps({"seconds": measure(Path(folder), kinds, source), "torch": "torch" in sys.modules}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        all_kinds = sorted(load_registry().architectures)
        kinds = [kind for kind in all_kinds if prepare(folder, kind)]
        print(f"{len(kinds)} of {len(all_kinds)} described types build from their default configuration\n")
        print("| from | median | slowest | torch loaded |\n|---|---|---|---|")
        for source in ("config", "headers"):
            command = [sys.executable, __file__, name, source, *kinds]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seconds = told["seconds"]
            worst = max(kinds[1:], key=seconds.__getitem__)
            first = f" (the first {seconds[kinds[0]]:.2f} s, with its imports)" if source == "config" else ""
            print(
                f"| {source}{first} | {median(seconds.values()):.3f} s | `{worst}` {seconds[worst]:.2f} s | {told['torch']} |"
            )


if __name__ == "__main__":
    main()
