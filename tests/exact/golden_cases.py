"""Cases whose numbers come from integer arithmetic alone, so that every machine has the same; run as a script it decodes.

    python golden_cases.py FOLDER

reads FOLDER/NAME.residue for each case and prints one JSON object: sha256 of the merged weight, of both deltas, of the
decoded original, and of a blob that is encoded anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from surgery.exact import Delta, Product, check_machine, decode, encode, merge_block

SHAPE = (96, 80)
CASES = {
    "float32": (torch.float32, torch.float32, 2.0**-6),
    "bfloat16": (torch.bfloat16, torch.float32, 2.0**-6),
    "bfloat16-large": (torch.bfloat16, torch.bfloat16, 1.0),
    "float16": (torch.float16, torch.float16, 2.0**-4),
    "float8_e4m3fn": (torch.float8_e4m3fn, torch.float32, 2.0**-3),
    "float8_e5m2": (torch.float8_e5m2, torch.float32, 2.0**-3),
}


def numbers(seed: int, *shape: int) -> torch.Tensor:
    """Return float64, about normally distributed: sums of four uniform numbers of 16 bits from a linear congruence."""
    state, found = np.uint64(seed), []
    with np.errstate(over="ignore"):
        for _ in range(4 * int(np.prod(shape))):
            state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            found.append(int(state >> np.uint64(48)))
    sums = np.array(found, dtype=np.int64).reshape(-1, 4).sum(1) - 2 * 65535
    return torch.from_numpy(sums.astype(np.float64) / 2.0**16).view(*shape)


def case(name: str) -> tuple[torch.Tensor, Delta]:
    """Return the original and the delta of a case: two adapters, one with a scale that is no power of two."""
    dtype, kind, ratio = CASES[name]
    weight = numbers(1, *SHAPE).to(dtype)
    weight.view(-1)[:3] = torch.tensor([0.0, -0.0, 4.0]).to(dtype)
    # A cast of NaN gives other bits on other processors: these are written as they are.
    weight.view(torch.uint8).view(-1)[3 * dtype.itemsize : 4 * dtype.itemsize] = 0x7F
    first = Product((numbers(2, SHAPE[0], 7) * ratio).to(kind), numbers(3, 7, SHAPE[1]).to(kind), 1 / 3)
    second = Product((numbers(4, SHAPE[0], 2) * ratio).to(kind), numbers(5, 2, SHAPE[1]).to(kind), 0.5)
    return weight, Delta([first, second], SHAPE)


def digest(data: torch.Tensor | bytes) -> str:
    raw = data if isinstance(data, bytes) else data.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()


def facts(name: str, blob: bytes | None) -> tuple[dict[str, str], bytes]:
    """Return what must be the same everywhere, and the blob that this machine makes."""
    weight, delta = case(name)
    merged, added = merge_block(weight, delta, 0), delta.block(0, SHAPE[0])
    quick = delta.block(0, SHAPE[0], correct=False)
    made = encode(weight, merged, added)
    found = {
        "original": digest(decode(merged, added, made if blob is None else blob)),
        "merged": digest(merged),
        "merged by one slice": digest(merge_block(weight, delta, 0, correct=False)),
        "delta": digest(added),
        "delta of one slice": digest(quick),
        "residue": digest(made),
    }
    return found, made


if __name__ == "__main__":
    check_machine()
    folder = Path(sys.argv[1])
    print(json.dumps({name: facts(name, (folder / f"{name}.residue").read_bytes())[0] for name in CASES}))
