"""`tied: share` and `untie` on models of transformers: live, merged, saved, loaded, undone; and `tie_weights`."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from operating import REGISTRY, base_bits, move, operated, planned, unchanged
from torch import nn

from surgery import load_adapter, operate
from surgery.errors import CheckpointError, StateError
from surgery.operation.untie import Loosened
from surgery.testing import ToyModel, assert_same_state, model_state

SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 12, "bos_token_id": 0,
                                 "eos_token_id": 0}),
    "bert": ("BertForMaskedLM", {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                                 "intermediate_size": 12, "max_position_embeddings": 12}),
    "albert": ("AlbertForMaskedLM", {"embedding_size": 8, "hidden_size": 8, "num_hidden_layers": 3,
                                     "num_attention_heads": 2, "intermediate_size": 12,
                                     "max_position_embeddings": 12}),
    "t5": ("T5ForConditionalGeneration", {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}),
    "bart": ("BartForConditionalGeneration", {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1,
                                              "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                                              "encoder_ffn_dim": 12, "decoder_ffn_dim": 12,
                                              "max_position_embeddings": 12, "bos_token_id": 0, "pad_token_id": 1,
                                              "eos_token_id": 2, "decoder_start_token_id": 2,
                                              "forced_eos_token_id": None}),
    "umt5": ("UMT5ForConditionalGeneration", {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}),
}  # fmt: skip
CUTTABLE = ("gpt2", "bert", "albert", "t5", "bart")
HEAD = {"role": r"head\.lm", "exclude": {"target": r".*\.bias"}}
LORA = {"adapter": "lora", "rank": 2}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """transformers shows bars on stderr."""
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


def made(kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return a tiny model of transformers in evaluation mode, and a batch."""
    name, sizes = SIZES[kind]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(vocab_size=16, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    ids = torch.arange(3, 9)[None]
    return model, {"input_ids": ids, **({"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {})}


def rule(kind: str, tied: str, adapter: str = "lora") -> dict[str, Any]:
    """A rule for the head's weight alone."""
    name = {"bert": r"cls\.predictions\.decoder", "albert": r"predictions\.decoder"}.get(kind, "lm_head")
    return {"target": rf"{name}\.weight", "tied": tied, **(LORA if adapter == "lora" else {"adapter": adapter})}


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    out: torch.Tensor = model(**batch).logits
    return out


def ties(model: nn.Module) -> set[frozenset[str]]:
    """The names of each tensor that has several."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(found) for found in names.values() if len(found) > 1}


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("tied", ["share", "untie"])
@pytest.mark.parametrize("kind", CUTTABLE)
def test_there_and_back(kind: str, tied: str, adapter: str, tmp_path: Path) -> None:
    model, batch = made(kind)
    before, config, listed = model_state(model), model.config.to_dict(), copy.deepcopy(model.all_tied_weights_keys)
    attributes = copy.deepcopy(vars(model.config))
    plain, shared = logits(model, batch), ties(model)
    with operated(model, rule(kind, tied, adapter)) as op:
        assert model.config.tie_word_embeddings  # the base's own tensor is tied, and is what would be saved
        live = logits(model, batch)
        assert not torch.equal(live, plain)
        model.tie_weights()
        assert torch.equal(logits(model, batch), live)
        op.save(tmp_path / "a")
        op.merge()
        assert model.config.tie_word_embeddings is (tied == "share")
        merged, bits = logits(model, batch), base_bits(model)
        assert torch.allclose(merged, live, atol=1e-4)
        assert (ties(model) == shared) is (tied == "share")
        model.tie_weights()
        assert base_bits(model) == bits
        assert torch.equal(logits(model, batch), merged)
        op.unmerge()
        assert model.config.tie_word_embeddings
        assert ties(model) == shared
        with op.disabled():
            assert torch.equal(logits(model, batch), plain)
    assert_same_state(before, model_state(model))
    assert (model.config.to_dict(), vars(model.config), model.all_tied_weights_keys) == (config, attributes, listed)
    assert torch.equal(logits(model, batch), plain)
    written = json.loads((tmp_path / "a" / "adapter.json").read_text())
    said = {"": {"tie_word_embeddings": False}}
    assert written.get("config_changes") == (said if tied == "untie" else None)
    other, _ = made(kind)
    with load_adapter(other, tmp_path / "a", registry=REGISTRY) as op:
        assert torch.equal(logits(other, batch), live)
        op.merge()
        assert base_bits(other) == bits


@pytest.mark.parametrize("tied", ["share", "untie"])
@pytest.mark.parametrize("kind", CUTTABLE)
def test_a_tuned_model_is_the_same_when_it_is_loaded_again(kind: str, tied: str, tmp_path: Path) -> None:
    model, batch = made(kind)
    op = operated(model, rule(kind, tied))
    op.merge()
    merged, bits = logits(model, batch), base_bits(model)
    assert op.finalize() is model
    assert torch.equal(logits(model, batch), merged)
    assert base_bits(model) == bits
    model.tie_weights()  # of the plain model now
    assert base_bits(model) == bits
    model.save_pretrained(tmp_path / "tuned")
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["tie_word_embeddings"] is (tied == "share")
    loaded, report = type(model).from_pretrained(tmp_path / "tuned", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert base_bits(loaded) == bits
    assert torch.equal(logits(loaded.eval(), batch), merged)


def test_what_else_the_setting_ties_is_cut_by_finalize_and_not_before() -> None:
    model, _ = made("bert")
    biases = frozenset({"cls.predictions.bias", "cls.predictions.decoder.bias"})
    op = operated(model, rule("bert", "untie"))
    op.merge()
    assert biases in ties(model)
    op.finalize()
    assert ties(model) == set()
    assert model.cls.predictions.bias.requires_grad


def test_a_tied_bias() -> None:
    """BERT's decoder has its bias under two names."""
    model, batch = made("bert")
    with unchanged(model), operated(model, rule("bert", "untie")) as op:
        op.add(planned(model, {"target": r"cls\.predictions\.bias", "adapter": "full", "tied": "share"}), "b")
        move(op, 3)
        live = logits(model, batch)
        op.merge()
        assert torch.allclose(logits(model, batch), live, atol=1e-4)
        assert model.cls.predictions.bias is model.cls.predictions.decoder.bias


def test_a_model_that_computes_something_else_when_untied_is_refused() -> None:
    """UMT5 scales the head's input where its configuration says that it is tied."""
    model, batch = made("umt5")
    plan, plain = planned(model, rule("umt5", "untie")), logits(model, batch)
    with unchanged(model), pytest.raises(StateError, match="computes something else") as caught:
        operate(model, plan, registry=REGISTRY)
    assert "UMT5ForConditionalGeneration" in str(caught.value) and "tied: share" in caught.value.hint
    assert model.config.tie_word_embeddings and torch.equal(logits(model, batch), plain)
    with operated(model, rule("umt5", "share")) as op:
        live = logits(model, batch)
        op.merge()
        assert torch.allclose(logits(model, batch), live, atol=1e-4)


@pytest.mark.parametrize("is_scaled", [True, False])
def test_t5_goes_on_scaling_as_it_did(is_scaled: bool, tmp_path: Path) -> None:
    model, batch = made("t5")
    model.config.scale_decoder_outputs = is_scaled
    op = operated(model, rule("t5", "untie"))
    op.merge()
    merged = logits(model, batch)
    op.finalize().save_pretrained(tmp_path)
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert loaded.config.scale_decoder_outputs is is_scaled
    assert torch.equal(logits(loaded, batch), merged)


def test_a_refused_operation_leaves_the_configuration() -> None:
    model, _ = made("gpt2")
    op = operated(model, rule("gpt2", "untie"), name="a")
    with pytest.raises(StateError, match="already called"):
        op.add(op.plan(), "a")
    op.add(planned(model, rule("gpt2", "untie")), "b")
    op.merge("b")
    assert model.config.tie_word_embeddings is False
    op.remove("a")
    assert model.config.tie_word_embeddings is False
    op.undo()
    assert model.config.tie_word_embeddings is True
    assert "tie_weights" not in vars(model)


def test_a_record_that_the_base_contradicts_is_refused(tmp_path: Path) -> None:
    model, _ = made("gpt2")
    with operated(model, rule("gpt2", "untie")) as op:
        op.save(tmp_path / "a")
    path = tmp_path / "a" / "adapter.json"
    written = json.loads(path.read_text())
    for changes, message in (
        ({"elsewhere": {"tie_word_embeddings": False}}, "the configuration of elsewhere"),
        ({"": {"tie_word_embeddings": True}}, "can only say"),
        ([], "can only say"),
    ):
        path.write_text(json.dumps({**written, "config_changes": changes}))
        with unchanged(model), pytest.raises(CheckpointError, match=message):
            load_adapter(model, tmp_path / "a", registry=REGISTRY)


def test_a_model_of_ones_own_with_the_setting() -> None:
    model = ToyModel()
    model.config = SimpleNamespace(model_type="surgery-toy", tie_word_embeddings=True)
    with operated(model, {"target": "head", **LORA, "tied": "untie"}) as op:
        assert model.config.tie_word_embeddings is True
        op.merge()
        assert model.config.tie_word_embeddings is False
    assert model.config.tie_word_embeddings is True
    with operated(model, {"target": "head", **LORA, "tied": "share"}):
        assert model.config.tie_word_embeddings is True


def test_albert_uses_one_adapter_for_all_its_layers() -> None:
    model, batch = made("albert")
    with operated(model, {"role": r"attention\.query", **LORA, "expect": 1}) as op:
        assert list(op.probe(batch).values()) == [3]
        live = logits(model, batch)
        op.merge()
        assert torch.allclose(logits(model, batch), live, atol=1e-5)


@pytest.mark.parametrize("tied", ["share", "untie"])
def test_two_modules_with_one_parameter(tied: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    inputs = torch.randn(3, 4)
    with unchanged(model), operated(model, {"target": r"2\.weight", **LORA, "tied": tied}) as op:
        live = model(inputs)
        op.merge()
        assert torch.allclose(model(inputs), live, atol=1e-5)
        assert (model[2].weight is model[0].weight) is (tied == "share")


def test_a_buffer_over_an_edited_parameter_is_refused() -> None:
    """It would go on holding the base's bits after a merge; one over another parameter does not matter."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].register_buffer("part", model[0].weight.data[:2])
    with unchanged(model), pytest.raises(StateError, match="shares memory") as caught:
        operated(model, {"target": "0", **LORA})
    assert "clone" in caught.value.hint
    with operated(model, {"target": "1", **LORA}) as op:
        op.merge()
    model[0].register_buffer("smaller", model[1].part[:1])
    with operated(model, {"target": "1", **LORA}) as op:
        op.merge()


def test_tie_weights_of_a_copy_keeps_its_cut() -> None:
    model, batch = made("gpt2")
    with operated(model, rule("gpt2", "untie")) as op:
        op.merge()
        twin = copy.deepcopy(model)
        twin.tie_weights()
        assert torch.equal(logits(twin, batch), logits(model, batch))
        assert twin.config.tie_word_embeddings is False


def test_a_tied_buffer_is_cut_as_a_parameter_is() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["a"].register_buffer("scale", torch.ones(2))
    model["b"].register_buffer("scale", model["a"].scale)
    one = Loosened("", SimpleNamespace(tie_word_embeddings=True), {"b.scale": "a.scale"}, [])
    one.cut_the_rest(model)
    assert model["b"].scale is not model["a"].scale
    assert torch.equal(model["b"].scale, model["a"].scale)
    held = model["b"].scale
    one.cut_the_rest(model)
    assert model["b"].scale is held


@pytest.mark.parametrize("state", ["live", "disabled"])
def test_a_model_that_is_not_merged_is_saved_as_the_base_is(state: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    model, batch = made("gpt2")
    model.save_pretrained(tmp_path / "base")
    plain = logits(model, batch)
    with operated(model, rule("gpt2", "untie")) as op, op.disabled() if state == "disabled" else nullcontext():
        model.save_pretrained(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as saved:
        assert "lm_head.weight" not in saved.keys()  # noqa: SIM118 - a file is no mapping
    assert json.loads((tmp_path / "saved" / "config.json").read_text()).get("tie_word_embeddings", True)
    loaded = type(model).from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(logits(loaded, batch), plain)
