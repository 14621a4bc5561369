"""Checkpoints of a few numbers, without an architecture: files, adapters on them, and what merging must give."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from operating import REGISTRY
from oracle import merged
from safetensors.torch import save_file
from torch import nn

from surgery import Plan, Rule, Spec, operate, plan

__all__ = ["TinyAdapter", "module_of", "shards_of", "snapshot", "wanted", "write_base", "write_native", "write_peft"]

Product = tuple[torch.Tensor, torch.Tensor, float]


@dataclass
class TinyAdapter:
    """An adapter folder: `products` is name of a weight -> (up, down, scale) of what it adds, `replaced` -> its new value."""

    name: str
    folder: Path
    products: dict[str, Product] = field(default_factory=dict)
    replaced: dict[str, torch.Tensor] = field(default_factory=dict)


def shards_of(tensors: Mapping[str, torch.Tensor], count: int) -> dict[str, dict[str, torch.Tensor]]:
    """Deal tensors out to `count` files."""
    names = sorted(tensors)
    if count == 1:
        return {"model.safetensors": dict(tensors)}
    return {
        f"model-{index + 1:05}-of-{count:05}.safetensors": {name: tensors[name] for name in names[index::count]}
        for index in range(count)
    }


def write_base(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1) -> Path:
    """Write a checkpoint as transformers does, with files beside the weights."""
    folder.mkdir(parents=True)
    files = shards_of(tensors, shards)
    for file, held in files.items():
        save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / file, {"format": "pt"})
    if shards > 1:
        index = {
            "metadata": {"total_size": 1},
            "weight_map": {name: file for file, held in files.items() for name in held},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text('{\n  "architectures": ["Tiny"],\n  "hidden_size": 4\n}\n')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"mean": true}')
    return folder


def module_of(tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a model whose state dict the tensors are: matrices are linear maps, vectors are norms' weights."""
    model = nn.Module()
    for key, tensor in tensors.items():
        child: nn.Module = (
            nn.RMSNorm(tensor.shape[0]) if tensor.ndim == 1 else nn.Linear(*tensor.shape[::-1], bias=False)
        )
        child.weight = nn.Parameter(tensor.clone())
        model.add_module(key.removesuffix(".weight"), child)
    return model


def write_native(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Mapping[str, torch.Tensor]],
    *rules: dict[str, Any],
) -> Plan:
    """Save an adapter of surgery's own; `numbers` is name of a module -> its adapter's tensors by local name."""
    model = module_of(tensors)
    decided = plan(Spec(name="tiny", rules=[Rule(**rule) for rule in rules]), model, REGISTRY)
    with operate(model, decided, registry=REGISTRY) as op:
        with torch.no_grad():
            for name, parameter in op.trainable().items():
                path, _, rest = name.partition(".surgery.")
                parameter.copy_(numbers[path][rest.rpartition(".")[2]])
        op.save(folder)
    return decided


def write_peft(folder: Path, products: Mapping[str, Product], **config: Any) -> None:
    """Save an adapter as PEFT does: scale is lora_alpha / rank, which must be the products' own."""
    folder.mkdir(parents=True)
    tensors = {}
    for name, (up, down, _) in products.items():
        path = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{path}.lora_A.weight": down.contiguous(), f"{path}.lora_B.weight": up.contiguous()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))


def wanted(tensors: Mapping[str, torch.Tensor], adapters: Sequence[TinyAdapter]) -> dict[str, torch.Tensor]:
    """Return what merging gives, in rational arithmetic; raises OverflowingError where a weight has no finite value.

    The adapters are taken in the reverse of the order of their names: a sum does not depend on it.
    """
    made, backwards = {}, sorted(adapters, key=lambda one: one.name, reverse=True)
    for name, tensor in tensors.items():
        values = [one.replaced[name] for one in backwards if name in one.replaced]
        products = [one.products[name] for one in backwards if name in one.products]
        assert len(values) + bool(products) <= 1
        made[name] = values[0] if values else merged(tensor, products) if products else tensor
    return made


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder by name, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
