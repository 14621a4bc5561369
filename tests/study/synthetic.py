"""Made-up studies: records as `run_cell` would write them, from a known truth."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from surgery.spec import Rule
from surgery.spectra import Decomposition, Directions
from surgery.study.cells import Cell, final_cells, tuning_cells
from surgery.study.choose import choose_rates
from surgery.study.spec import FROZEN, StudySpec
from surgery.study.summary import Summary, summarise

MODEL = 22_566_000
SIZES = {"full": 22_565_376, "lora": 331_776, "bias": 25_728, FROZEN: 0}
TRUTH = {"full": 0.62, "lora": 0.615, "bias": 0.55, FROZEN: 0.45}
HEAD = 3080
FORGET = True
RANKS = {"full": (384,), "lora": (8,)}


def make_study(seeds: int = 5, grid: bool = True, **changes: Any) -> StudySpec:
    """A text-classification study of three arms; `grid=False` gives each arm one learning rate."""
    rates = {"full": (3e-5, 1e-4, 3e-4), "lora": (3e-4, 1e-3, 3e-3), "bias": (1e-3, 3e-3, 1e-2)}
    labels = {"full": "full tuning", "lora": "LoRA, all linears, r=8", "bias": "bias only"}
    keys: dict[str, Any] = {
        "name": "docstring-chapters",
        "model": "demo:minilm",
        "task": {"kind": "text-classification"},
        "data": {"name": "demo:docstrings"},
        "training": {"steps": 240, "batch_size": 16, "evaluate_every": 40},
        "seeds": list(range(1, seeds + 1)),
        "head": [Rule(role=r"head\..*", adapter="full")],
        "head_learning_rate": 5e-3,
        "arms": {
            name: {
                "rules": [{"role": ".*", "adapter": name}],
                "learning_rate": rate if grid else rate[1],
                "label": labels[name],
            }
            for name, rate in rates.items()
        },
        "reference": "full",
        "margin": 0.01,
    }
    return StudySpec(**{**keys, **changes})


def make_record(cell: Cell, items: int = 800, classes: int = 8, **changes: Any) -> dict[str, Any]:
    """One record; seed noise of 0.6 points, and items on which the arms mostly agree."""
    shared = np.random.default_rng([cell.seed, 1])
    own = np.random.default_rng([cell.seed, sum(map(ord, cell.arm))])
    truth = TRUTH.get(cell.arm, 0.5) + own.normal(0, 0.006)
    label = np.random.default_rng(0).integers(0, classes, items)
    ease = np.random.default_rng(1).random(items) * 0.75 + shared.random(items) * 0.1 + own.random(items) * 0.15
    right = ease < np.quantile(ease, truth)
    prediction = np.where(right, label, (label + 1) % classes)
    loss = np.where(right, 0.35, 1.9) + own.normal(0, 0.05, items) ** 2
    off = abs(np.log10(cell.rate / {"full": 1e-4, "lora": 1e-3, "bias": 3e-3}.get(cell.arm, cell.rate)))
    validation = 1.9 - 1.2 * truth + 0.25 * off**2
    size = SIZES.get(cell.arm, 1000)
    final = cell.phase == "final"
    accuracy = float(right.mean())
    steps = [0, 40, 80, 120, 160, 200, 240]
    record: dict[str, Any] = {
        "key": cell.key,
        "arm": cell.arm,
        "phase": cell.phase,
        "seed": cell.seed,
        "learning_rate": cell.rate,
        "trains": cell.trains,
        "plan": hashlib.sha256(cell.arm.encode()).hexdigest(),
        "metric": {"name": "accuracy", "greater_is_better": True},
        "validation": {"loss": validation, "accuracy": accuracy},
        "test": {"loss": float(loss.mean()), "accuracy": accuracy} if final else None,
        "test_reads": int(final),
        "items": {
            "loss": loss.tolist(),
            "units": [1] * items,
            "prediction": prediction.tolist(),
            "label": label.tolist(),
        }
        if final
        else None,
        "curve": [
            {
                "step": step,
                "train_loss": None if step == 0 else validation + 1.1 * float(np.exp(-step / 60)) - 0.05,
                "validation_loss": validation + (2.08 - validation) * float(np.exp(-step / 60)),
                "tokens": step * 98_000 // 240,
                "validation_metric": accuracy * (1 - float(np.exp(-(step + 20) / 60))),
            }
            for step in steps
        ],
        "parameters": {"adapter": size, "head": HEAD, "model": MODEL},
        "checkpoint_bytes": 4 * (size + HEAD) + 3000,
        "checkpoint": hashlib.sha256(cell.key.encode()).hexdigest(),
        "merge": {
            "elements": MODEL,
            "differ": 0,
            "logit_change": 2.4e-6 * own.random(),
            "logit_size": 6.1,
            "flips": 0,
            "rows": 32,
        }
        if final
        else None,
        "forgetting": {"before": 2.5, "after": 2.5 + size / 1e8 + own.normal(0, 0.01)} if final and FORGET else None,
        "memory": {
            "weights": 4 * (MODEL + size * (cell.arm != "full")),
            "gradients": 4 * (size + HEAD),
            "optimizer": 8 * (size + HEAD),
            "activations": {FROZEN: 60_000}.get(cell.arm, 68_000_000 + 30_000_000 * (cell.arm != "bias")),
        },
        "cost": {
            "examples": 16,
            "length": 32,
            "padded": True,
            "forward": 11_000_000_000 + 60 * size,
            "backward": {FROZEN: 20_000, "full": 22_100_000_000}.get(cell.arm, 11_100_000_000),
            "predicted": {
                "weights": 4 * (MODEL + size * (cell.arm != "full")),
                "gradients": 4 * (size + HEAD),
                "optimizer": 8 * (size + HEAD),
                "activations": {FROZEN: 60_000}.get(cell.arm, 70_000_000 + 30_000_000 * (cell.arm != "bias")),
                "forward": 11_000_000_000 + 60 * size,
                "backward": {FROZEN: 20_000, "full": 22_100_000_000}.get(cell.arm, 11_100_000_000),
                "why": "",
            },
        },
        "budget": {"examples": 3840, "tokens": 98_000 + cell.seed, "updates": 240},
        "hashes": {
            name: hashlib.sha256(
                f"{name}{cell.seed if name in ('order', 'head', 'start') else ''}".encode()
            ).hexdigest()
            for name in ("base", "tokenizer", "data", "data.validation", "data.test", "order", "head", "start")
        },
        "conditions": make_conditions(cell, size),
        "majority": {
            "label": 3,
            "shares": [0.1, 0.1, 0.1, 0.35, 0.1, 0.1, 0.1, 0.05],
            "test": {"loss": 1.93, "accuracy": float((label == 3).mean())},
            "validation_loss": 1.93,
        }
        if final
        else None,
        "diverged": False,
        "notes": [],
        "versions": {"model-surgery": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "timing": {
            "step": 0.2 + size / 1e8 + own.random() / 100,
            "step_low": 0.19 + size / 1e8,
            "step_high": 0.22 + size / 1e8,
            "step_cpu": 0.2 + size / 1e8,
            "total": 60.0,
        },
        "machine": {"cores": 2, "processor": "x86_64", "system": "Linux"},
    }
    if cell.weights:
        record["weights"] = [make_matrix(layer, rank) for layer in range(6) for rank in RANKS.get(cell.arm, ())]
    return {**record, **changes}


def make_conditions(cell: Cell, size: int) -> dict[str, Any]:
    """What a run was trained under, as `surgery.study.conditions` says it."""
    head = {"name": r"head\..*", "parameters": HEAD, "learning_rate": 5e-3, "weight_decay": 0.01}
    rest = {"name": "rest", "parameters": size, "learning_rate": cell.rate, "weight_decay": 0.01}
    plain = {**rest, "name": "rest, without decay", "weight_decay": 0.0}
    return {
        "dropout": "0.1 in 25 modules, hidden_dropout_prob 0.1",
        "adapter_dropout": [0.05] if cell.arm == "lora" else [],
        "scales": [2.0] if cell.arm == "lora" else [],
        "groups": [head, plain if cell.arm == "bias" else rest],
        "max_grad_norm": 1.0,
        "gradient_norm": 3.25,
        "clipped": 0.75,
        "scored_at": 240,
        "order": [hashlib.sha256(f"{cell.seed} {power}".encode()).hexdigest()[:16] for power in range(12)],
        "shared_rows": {"train & validation": 0, "train & test": 0, "validation & test": 0},
        "rows": {"train": 4096, "validation": 500, "test": 800},
    }


def make_matrix(layer: int, rank: int) -> dict[str, Any]:
    """What changed in one matrix, as `surgery.spectra` says it."""
    figures = {"top_ratio": 0.04, "intruders": 0, "intruders_undecided": 0, "intruder_energy": 0.0}
    one = {"stable_rank": rank / 4, "entropy_rank": rank / 2 + layer, "rank_for_energy": 1 + rank // 3, **figures}
    other = {"stable_rank": rank / 2, "entropy_rank": rank * 0.9, "rank_for_energy": 1 + rank // 2, **figures}
    own = {"name": f"layer.{layer}.query.weight", "role": "attention.query", "stack": "encoder", "layer": layer}
    change = {"expert": None, "shape": [384, 384], "relative_norm": 0.016 * (layer + 1), "rank": rank, "missed": 0.0}
    change["values"] = [0.5 * 0.8**index for index in range(min(rank, 32))]
    change["control_values"] = [0.2 * 0.98**index for index in range(min(rank, 32))]
    return {**own, **change, "found": one, "control": other}


def make_directions(cell: Cell) -> dict[str, Directions]:
    """Directions of three matrices: those of an arm share half of theirs with every seed's."""
    found = {}
    for layer in range(3 if cell.arm in RANKS else 0):
        name = f"layer.{layer}.query.weight"
        own = torch.Generator().manual_seed(100 * cell.seed + sum(map(ord, cell.arm)) + layer)
        shared = torch.randn(24, 4, generator=torch.Generator().manual_seed(layer), dtype=torch.float64)
        sides = [torch.cat([shared, torch.randn(24, 4, generator=own, dtype=torch.float64)], 1) for _ in range(2)]
        left, right = (torch.linalg.qr(side)[0] for side in sides)
        whole = Decomposition(left, torch.linspace(2, 1, 8), right.mT, 20.0)
        found[name] = Directions(name, "attention.query", "encoder", layer, None, whole)
    return found


def make_records(study: StudySpec, items: int = 800) -> list[dict[str, Any]]:
    """Every record of `study`, tuning first."""
    tuning = [make_record(cell, items) for cell in tuning_cells(study)]
    rates = {choice.arm: choice.rate for choice in choose_rates(study, tuning)}  # type: ignore[arg-type]
    return [*tuning, *(make_record(cell, items) for cell in final_cells(study, rates))]


def make_turns(cells: Sequence[Cell]) -> dict[str, Any]:
    """What a clock might say of every arm that trains."""
    found = {}
    for arm in {cell.arm: cell for cell in cells if cell.trains}:
        step = 0.2 + SIZES.get(arm, 1000) / 1e8
        spread = [0.0, 0.004, 0.009, 0.002]
        found[arm] = {
            "step": [step + noise for noise in spread],
            "step_cpu": [step - noise / 8 for noise in spread],
            "base": [0.0160 + noise / 20 for noise in spread],
            "unmerged": [0.0171 + noise / 20 for noise in spread],
            "merged": [0.0161 + noise / 20 for noise in spread],
        }
    return found


def make_summary(study: StudySpec, records: list[dict[str, Any]]) -> Summary:
    """The summary of made-up records."""
    return summarise(study, records, choose_rates(study, records))  # type: ignore[arg-type]
