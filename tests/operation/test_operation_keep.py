"""Where originals are while a merge is live: memory, the base checkpoint, residues, or nowhere. And leaving for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from operating import LORA, REGISTRY, base_bits, logits, move, operated, planned, unchanged
from safetensors.torch import load_file, save_file
from torch import nn

from surgery import operate
from surgery.errors import CheckpointError, DriftError, StateError
from surgery.testing import assert_same_state, model_state

RULES = ({"role": r"attention\..*", **LORA}, {"role": r"(norm|mlp)\..*", "adapter": "full"})


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    model, batch = build("GPT2LMHeadModel")
    model.save_pretrained(tmp_path / "base")
    return model, batch, tmp_path / "base"


def on_disk(model: nn.Module, base: Path) -> Any:
    op = operate(model, planned(model, *RULES), keep="disk", base=base, registry=REGISTRY)
    move(op)
    return op


def test_unmerge_reads_the_base_again(saved: Any) -> None:
    model, batch, base = saved
    before, plain = model_state(model), logits(model, batch)
    expected = on_disk(build("GPT2LMHeadModel")[0], base)
    expected.merge()
    op = on_disk(model, base)
    for _ in range(3):
        op.merge()
        assert torch.equal(logits(model, batch), logits(expected.model, batch))
        with op.disabled():
            assert torch.equal(logits(model, batch), plain)
        op.unmerge()
        assert {key: base_bits(model)[key] for key in before.bits} == before.bits
    op.merge()
    op.undo()
    assert_same_state(before, model_state(model))


def test_nothing_of_the_original_stays_in_memory(saved: Any) -> None:
    model, _, base = saved
    held = model.transformer.h[0].mlp.c_fc._parameters["weight"].data_ptr()
    op = on_disk(model, base)
    op.merge()
    assert all(not hasattr(slot.original, "_tensor") for slot in op.body.slots.values())
    assert model.transformer.h[0].mlp.c_fc._parameters["weight"].data_ptr() != held
    op.undo()


def flip(base: Path) -> None:
    path = base / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    for index in range(len(data) - 4000, len(data)):
        data[index] ^= 1
    path.write_bytes(bytes(data))


def rename(base: Path) -> None:
    (base / "model.safetensors").rename(base / "elsewhere")


def truncate(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("damage", "error"), [(flip, DriftError), (rename, CheckpointError), (truncate, CheckpointError)]
)
def test_a_base_that_changed_since_is_an_error_and_the_model_stays(
    saved: Any, damage: Any, error: type[Exception]
) -> None:
    model, batch, base = saved
    content = (base / "model.safetensors").read_bytes()
    before = model_state(model)
    op = on_disk(model, base)
    op.merge()
    merged = logits(model, batch)
    damage(base)
    for act in (op.unmerge, op.undo):
        with unchanged(model), pytest.raises(error) as caught:
            act()
        assert "model.safetensors" in caught.value.where
    with unchanged(model), pytest.raises(error), op.disabled():
        pass
    assert torch.equal(logits(model, batch), merged)
    (base / "model.safetensors").write_bytes(content)
    op.undo()
    assert_same_state(before, model_state(model), "once the base was put back")


@pytest.mark.parametrize("damage", [flip, rename, truncate])
def test_a_base_that_is_not_this_model_is_refused_before_the_merge(saved: Any, damage: Any) -> None:
    model, _, base = saved
    op = on_disk(model, base)
    damage(base)
    with unchanged(model), pytest.raises((StateError, CheckpointError)):
        op.merge()
    op.undo()


def test_another_dtype_on_disk_is_refused(saved: Any) -> None:
    model, _, base = saved
    model.to(torch.bfloat16)
    op = on_disk(model, base)
    with unchanged(model), pytest.raises(StateError, match="has another shape or dtype") as caught:
        op.merge()
    assert caught.value.hint == "operate with keep='ram'"


@pytest.mark.parametrize("tied", ["share", "untie"])
def test_a_tied_tensor_is_found_under_the_name_that_the_file_has(saved: Any, tied: str) -> None:
    model, _, base = saved
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    decided = planned(model, {"target": "lm_head", "adapter": "full", "tied": tied})
    with unchanged(model), operate(model, decided, keep="disk", base=base, registry=REGISTRY) as op:
        move(op)
        op.merge()
        op.unmerge()


def test_a_file_of_the_bare_base_model(saved: Any, tmp_path: Path) -> None:
    model, _, base = saved
    state = load_file(base / "model.safetensors")
    bare = tmp_path / "bare"
    bare.mkdir()
    save_file({key.removeprefix("transformer."): tensor for key, tensor in state.items()}, bare / "model.safetensors")
    with unchanged(model), on_disk(model, bare) as op:
        op.merge()


def test_the_base_is_known_where_transformers_loaded_it_from(saved: Any) -> None:
    from transformers import GPT2LMHeadModel

    _, batch, base = saved
    model = GPT2LMHeadModel.from_pretrained(base).eval()
    with operate(model, planned(model, *RULES), keep="disk", registry=REGISTRY) as op:
        op.merge()
        logits(model, batch)


def test_a_merge_beside_one_that_folds_on_the_fly_needs_memory(saved: Any) -> None:
    model, _, base = saved
    with on_disk(model, base) as op:
        op.add(planned(model, {"role": r"mlp\..*", "adapter": "full"}), "b")
        with unchanged(model), pytest.raises(StateError, match="folded in on the fly"):
            op.merge("default")
        op.merge()


# keep=none ----------------------------------------------------------------------------------------------------------


def test_without_originals_a_merge_must_be_called_irreversible() -> None:
    model, batch = build("GPT2LMHeadModel")
    op = operated(model, *RULES, keep="none")
    live = logits(model, batch)
    with unchanged(model), pytest.raises(StateError, match="cannot be undone\n  hint: say op.merge"):
        op.merge()
    op.merge(irreversible=True)
    assert torch.allclose(logits(model, batch), live, atol=1e-4)
    for act in (op.unmerge, op.undo, lambda: op.remove("default")):
        with unchanged(model), pytest.raises(StateError, match="was not kept"):
            act()
    with unchanged(model), pytest.raises(StateError, match="was not kept"), op.disabled():
        pass
    merged = base_bits(model)
    op.finalize()
    assert base_bits(model) == merged


def test_leaving_the_block_after_an_irreversible_merge_keeps_it() -> None:
    model, batch = build("GPT2LMHeadModel")
    with operated(model, *RULES, keep="none") as op:
        op.merge(irreversible=True)
        merged = logits(model, batch)
    assert torch.equal(logits(model, batch), merged)


def test_without_a_merge_everything_can_be_undone() -> None:
    model, _ = build("GPT2LMHeadModel")
    with unchanged(model):
        operated(model, *RULES, keep="none").undo()


# keep=residue -------------------------------------------------------------------------------------------------------

FAMILIES = ("BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM", "MixtralForCausalLM")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_residues_give_back_every_bit(family: str, dtype: torch.dtype) -> None:
    model, _ = build(family)
    model.to(dtype)
    before = model_state(model)
    op = operated(
        model, {"role": r"(attention|mlp|moe)\..*", **LORA}, {"role": r"norm\..*", "adapter": "full"}, keep="residue"
    )
    op.add(planned(model, {"role": r"attention\..*", **LORA}), "b")
    move(op)
    whole = merged_alone(op, "default", "b")
    for _ in range(2):
        op.merge("default")
        op.merge("b")
        assert {key: base_bits(model)[key] for key in before.bits} == whole
        op.unmerge("default")
        op.unmerge("b")
        assert {key: base_bits(model)[key] for key in before.bits} == before.bits
    op.merge()
    with op.disabled():
        assert {key: base_bits(model)[key] for key in before.bits} == before.bits
    op.undo()
    assert_same_state(before, model_state(model))


def merged_alone(op: Any, *names: str) -> dict[str, bytes]:
    op.merge(*names)
    bits = dict(base_bits(op.model))
    op.unmerge()
    return bits


def test_residues_hold_no_second_copy() -> None:
    model, _ = build("LlamaForCausalLM")
    with operated(model, {"role": r"(attention|mlp)\..*", **LORA}, keep="residue") as op:
        op.merge()
        slots = [slot for slot in op.body.slots.values() if slot.original is not None]
        assert len(slots) > 5
        for slot in slots:
            assert not hasattr(slot.original, "_tensor")
            assert slot.original.nbytes < slot.live.nbytes / 8


def test_a_residue_does_not_care_for_adapters_that_are_trained_on() -> None:
    model, _ = build("GPT2LMHeadModel")
    with unchanged(model), operated(model, {"role": r"attention\..*", **LORA}, keep="residue") as op:
        trained = list(op.trainable().values())
        op.merge()
        with torch.no_grad():
            for parameter in trained:
                parameter.mul_(-1.5)
        op.unmerge()


def test_a_merged_weight_that_changed_is_an_error() -> None:
    model, _ = build("GPT2LMHeadModel")
    op = operated(model, {"role": r"attention\..*", **LORA}, keep="residue")
    op.merge()
    slot = next(iter(op.body.slots.values()))
    before = slot.live.detach().clone()
    with torch.no_grad():
        slot.live[0, 0] += 1
    slot.expected = None  # as if the checksum of the merged weight had not noticed
    with unchanged(model), pytest.raises(DriftError, match="residue"):
        op.unmerge()
    with torch.no_grad():
        slot.live.copy_(before)
    op.undo()


# Leaving for good ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["ram", "disk", "residue", "none"])
@pytest.mark.parametrize("is_merged", [False, True], ids=["live", "merged"])
def test_finalize_leaves_a_plain_model_that_saves_and_loads(
    saved: Any, keep: str, is_merged: bool, tmp_path: Path
) -> None:
    from transformers import GPT2LMHeadModel

    model, batch, base = saved
    before = model_state(model)
    op = operate(model, planned(model, *RULES), keep=keep, base=base, registry=REGISTRY)
    move(op)
    live = logits(model, batch)
    if is_merged:
        op.merge(irreversible=True)
    assert op.finalize() is model
    after = model_state(model)
    assert torch.allclose(logits(model, batch), live, atol=1e-4)
    for name in ("keys", "dtypes", "classes", "children", "attributes", "identities", "flags", "modes"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.bits != before.bits
    model.save_pretrained(tmp_path / "out")
    assert not [key for key in load_file(tmp_path / "out" / "model.safetensors") if "surgery" in key]
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    with pytest.raises(StateError, match="the operation is over"):
        op.unmerge()
    operated(model, *RULES).undo()  # it can be operated again


@pytest.mark.parametrize("tied", ["share", "untie"])
def test_a_finalised_head_that_was_tied_survives_saving(tied: str, tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    model, batch = build("GPT2LMHeadModel")
    op = operated(model, {"target": "lm_head", "adapter": "lora", "rank": 2, "tied": tied})
    live = logits(model, batch)
    op.finalize()
    assert torch.allclose(logits(model, batch), live, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert torch.equal(
        logits(GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval(), batch),
        logits(model, batch),
    )
