"""What a file leaves out: tied tensors are stored once, and an architecture tells their other names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from surgery import Architecture
from surgery.planning.checkpoint import inventory_of_checkpoint
from surgery.planning.inventory import Inventory, ParameterEntry

_TIED = Architecture(
    ("x",), "", {}, {},
    ties={
        "enc.table.weight": "table.weight",
        "dec.table.weight": "table.weight",
        "head.weight": ("table.weight", "dec.table.weight"),
    },
    ignored=("logits_bias",),
)  # fmt: skip


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        # All names of one tensor are told, not those of pairs; a decoder is there when anything of it is.
        (
            ["table.weight", "enc.a.weight", "dec.a.weight"],
            ["XForConditionalGeneration"],
            ["dec.table.weight", "enc.table.weight", "head.weight", "table.weight"],
        ),
        (["table.weight", "enc.a.weight"], ["XEncoderModel"], ["enc.table.weight", "table.weight"]),
        (["table.weight", "enc.a.weight", "qa.weight"], ["XForQA"], ["enc.table.weight", "table.weight"]),
        (["dec.table.weight", "dec.a.weight"], ["XForCausalLM"], ["dec.table.weight", "head.weight"]),
        (["dec.table.weight", "dec.a.weight"], None, ["dec.table.weight", "head.weight"]),
        (["table.weight", "enc.a.weight"], None, ["enc.table.weight", "table.weight"]),
        (["table.weight", "head.bias"], ["XForQA"], ["head.weight", "table.weight"]),
        (["table.weight", "logits_bias"], ["XModel"], []),
    ],
)
def test_names_that_a_file_leaves_out(
    names: list[str], classes: list[str] | None, expected: list[str], tmp_path: Path
) -> None:
    save_file({name: torch.zeros(3, 2) for name in names}, tmp_path / "model.safetensors")
    found = inventory_of_checkpoint(tmp_path, _TIED, {"architectures": classes} if classes else {})
    assert sorted(found.ties) == expected
    assert all(sorted((name, *others)) == expected for name, others in found.ties.items())
    assert "logits_bias" not in {entry.name for entry in found.entries}


def test_a_tied_tensor_is_called_by_the_name_that_is_no_alias() -> None:
    """Whatever comes first in the model: XLM-RoBERTa keeps its head before its embeddings."""
    entries = tuple(ParameterEntry(path, "weight", (3, 2), "float32", "") for path in ("head", "table"))
    ties = {"head.weight": ("table.weight",), "table.weight": ("head.weight",)}
    assert Inventory("x", "", "model", entries, ties).canonical("table.weight") == "head.weight"
    found = Inventory("x", "", "model", entries, ties, aliases=("head.weight",))
    assert found.canonical("head.weight") == found.canonical("table.weight") == "table.weight"
    assert [entry.name for entry in found.distinct] == ["table.weight"]
