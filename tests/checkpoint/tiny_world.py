"""A base of two shards, an adapter of either format, both merged, and taken out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from operating import REGISTRY
from tiny import TinyAdapter, snapshot, write_base, write_native, write_peft

from surgery import merge_checkpoint, unmerge_checkpoint

__all__ = ["World"]

RULE = {"target": "a|b", "adapter": "lora", "rank": 1, "alpha": 1.5, "allow_oversized": True}


class World:
    """What lies in `root`: base, own and theirs (the adapters), merged, back.

    Attributes:
        tensors: of the base.
        adapters: what the two add.
        results: command -> the files that it must give.
        sources: all files.
    """

    def __init__(self, root: Path, **options: Any) -> None:
        self.root, self.options = root, options
        draw = torch.Generator().manual_seed(0)

        def numbers(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=draw)

        shapes = {"a.weight": (3, 4), "b.weight": (4, 3), "c.weight": (3,)}
        self.tensors = {name: numbers(*shape).bfloat16() for name, shape in shapes.items()}
        write_base(root / "base", self.tensors, 2)
        own = {
            name: {"A": numbers(1, shapes[f"{name}.weight"][1]), "B": numbers(shapes[f"{name}.weight"][0], 1)}
            for name in "ab"
        }
        write_native(root / "own", self.tensors, own, RULE)
        up, down = numbers(3, 2), numbers(2, 4)
        write_peft(root / "theirs", {"a.weight": (up, down, 1.0)}, lora_alpha=2, r=2)
        self.adapters = [
            TinyAdapter("own", root / "own", {f"{n}.weight": (t["B"], t["A"], 1.5) for n, t in own.items()}),
            TinyAdapter("theirs", root / "theirs", {"a.weight": (up, down, 1.0)}),
        ]
        self.merge(root / "merged")
        self.unmerge(root / "back")
        self.results = {"merge": snapshot(root / "merged"), "unmerge": snapshot(root / "back")}
        self.sources = snapshot(root)

    def merge(self, out: Path, **options: Any) -> bool:
        """Return whether anything was done."""
        folders, options = [one.folder for one in self.adapters], {"jobs": 1, **self.options, **options}
        return not merge_checkpoint(self.root / "base", folders, out, registry=REGISTRY, **options).was_done

    def unmerge(self, out: Path) -> bool:
        """Return whether anything was done."""
        return not unmerge_checkpoint(self.root / "merged", out, jobs=1, registry=REGISTRY).was_done
