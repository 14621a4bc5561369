"""Two packages that exist only in the docs: built, installed beside the wheel in a fresh environment, and used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pages import ROOT, Block, blocks, commands, same_output

if TYPE_CHECKING:  # several folders have a conftest; at run time the name means the last one imported
    from conftest import Fresh

TRAIN = """
import json, sys
import torch, surgery
from surgery.operation.bits import sha256
from transformers import PersimmonConfig, PersimmonForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
model = PersimmonForCausalLM(PersimmonConfig(vocab_size=40, **sizes)).eval().bfloat16()
model.save_pretrained("base")
spec = surgery.load_spec("both.yaml")
decided = surgery.plan(spec, model)
ids = torch.arange(12).reshape(2, 6)
before = {name: sha256(tensor) for name, tensor in model.state_dict().items()}
with surgery.operate(model, decided) as op:
    op.probe(input_ids=ids)
    optimizer = torch.optim.AdamW(op.trainable().values(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    op.merge()
    merged = {name for name, tensor in model.state_dict().items() if name in before and sha256(tensor) != before[name]}
    op.unmerge()
    op.save("adapter")
    logits = model(input_ids=ids).logits
torch.save(logits, "logits.pt")
after = {name: sha256(tensor) for name, tensor in model.state_dict().items()}
print(json.dumps({
    "same": before == after, "merged": sorted(merged), "file": surgery.__file__, "parameters": decided.parameters,
    "architecture": decided.architecture,
}))
"""

LOAD = """
import torch, surgery
from transformers import PersimmonForCausalLM

model = PersimmonForCausalLM.from_pretrained("base").eval()
assert model.dtype == torch.bfloat16, model.dtype
with surgery.load_adapter(model, "adapter"):
    logits = model(input_ids=torch.arange(12).reshape(2, 6)).logits
print(torch.equal(logits, torch.load("logits.pt")))
"""

SPEC = r"""
version: 1
name: both
rules:
  - role: attention\.(query|value)
    adapter: row-scale
    expect: 4
  - role: mlp\..*
    adapter: lora
    rank: 2
    expect: 4
"""


def test_entry_points_find_them(fresh: Fresh) -> None:
    rows = {row["name"]: row for row in json.loads(fresh.run("surgery", "plugins", "--json"))}
    assert rows["row-scale"]["distribution"] == "surgery-row-scale"
    assert (rows["row-scale"]["kind"], rows["row-scale"]["plugin"]) == ("adapter", "row-scale")
    assert (rows["persimmon"]["kind"], rows["persimmon"]["distribution"]) == ("architecture", "surgery-persimmon")
    assert rows["lora"]["distribution"] == "model-surgery"
    schema = fresh.run("surgery", "schema")
    assert "row-scale" in schema
    assert "init_std" in schema


def test_from_spec_to_a_new_process(fresh: Fresh) -> None:
    (fresh.folder / "both.yaml").write_text(SPEC, "utf-8")
    python = str(fresh.python)
    found = json.loads(fresh.run(python, "-c", TRAIN))
    assert Path(found["file"]).is_relative_to(fresh.python.parents[1]), "the wheel is what was imported"
    assert found["same"], "the operation left a bit of the base changed"
    assert found["architecture"] == "persimmon (surgery-persimmon 0.1.0)"
    assert found["parameters"] == 4 * 16 + 4 * 2 * (16 + 64)
    fused = [f"model.layers.{layer}.self_attn.query_key_value.weight" for layer in (0, 1)]
    names = ("dense_h_to_4h", "dense_4h_to_h")
    mlp = [f"model.layers.{layer}.mlp.{name}.weight" for layer in (0, 1) for name in names]
    assert found["merged"] == sorted(fused + mlp)
    used = json.loads((fresh.folder / "adapter" / "adapter.json").read_text("utf-8"))["plugins"]
    assert used["row-scale"] == {"distribution": "surgery-row-scale", "version": "0.1.0"}
    assert fresh.run(python, "-c", LOAD) == "True\n"
    planned = fresh.run("surgery", "plan", "both.yaml", "base", "--from-headers", "--quiet")
    assert "[persimmon (surgery-persimmon 0.1.0)]" in planned


def _installed() -> list[tuple[str, Block]]:
    pages = [ROOT / "docs" / f"write-an-{word}.md" for word in ("adapter", "architecture")]
    return [(page.stem, block) for page in pages for block in blocks(page) if "installed" in block.words]


@pytest.mark.parametrize(("page", "block"), _installed(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_the_pages_show(page: str, block: Block, fresh: Fresh) -> None:
    for command, shown in commands(block):
        printed = fresh.run("bash", "-c", command)
        assert same_output(shown, printed), printed
