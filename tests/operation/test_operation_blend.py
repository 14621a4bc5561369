"""A part of what was learned: exact at both ends, on the line in between, and gone when the block ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from surgery.adapter import Adapter
from surgery.architecture import Site
from surgery.errors import StateError
from surgery.operation import Operation, operate
from surgery.operation.blend import _PartOfOutput, blended, change_norm
from surgery.planning import plan
from surgery.registry import Registry, load_registry
from surgery.spec import Rule, Spec
from surgery.study.exact import Snapshot

RULES = {
    "full": [Rule(role=".*", adapter="full", tied="share")],
    "lora": [Rule(role=r"attention\.(query|value)|mlp\..*", adapter="lora", rank=2)],
    "bias": [Rule(role=".*", adapter="bias-only")],
    "ia3": [Rule(role=r"attention\.(key|value)|mlp\.down", adapter="ia3")],
    "both": [Rule(role=r"attention\..*", adapter="lora", rank=2), Rule(role=".*", adapter="bias-only")],
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


def make_model(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        model = BertForSequenceClassification(BertConfig(vocab_size=32, max_position_embeddings=32, **sizes))
    return model.to(dtype).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(12).view(2, 6)).logits
    return found


def shaken(model: Any, rules: list[Rule], registry: Registry) -> Operation:
    operation = operate(model, plan(Spec(name="a", rules=rules), model, registry=registry), registry=registry)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in operation.trainable().values():
            noise = 0.05 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + noise.to(parameter.dtype))
    return operation


def folded(operation: Operation) -> dict[str, torch.Tensor]:
    """The tuned weights, as merging makes them."""
    operation.merge()
    found = {name: slot.live.detach().clone() for name, slot in operation.body.slots.items()}
    operation.unmerge()
    return found


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_both_ends_are_exact_and_the_rest_lies_between(kind: str, rules: str, registry: Registry) -> None:
    model = make_model(kind)
    snapshot, base = Snapshot(model), logits(model)
    with shaken(model, RULES[rules], registry) as operation:
        tuned = logits(model)
        assert not torch.equal(tuned, base)
        with blended(operation, 1):
            assert torch.equal(logits(model), tuned)
        with blended(operation, 0):
            assert torch.equal(logits(model), base)
        with blended(operation, 0.25):
            quarter = logits(model)
        assert torch.equal(logits(model), tuned)
        assert snapshot.differing() == 0
        weights, pristine = folded(operation), {n: s.pristine().clone() for n, s in operation.body.slots.items()}
    assert snapshot.differing() == 0
    # The same line, walked by hand in a plain model.
    by_hand = make_model(kind)
    with torch.no_grad():
        for name, weight in weights.items():
            by_hand.get_parameter(name).copy_(pristine[name] + 0.25 * (weight - pristine[name]))
    assert not torch.equal(quarter, base)
    torch.testing.assert_close(quarter, logits(by_hand), rtol=0, atol=2e-6)


def test_what_is_kept_stays_as_it_was_trained(registry: Registry) -> None:
    model = make_model("bert")
    head = {name for name, _ in model.named_parameters() if name.startswith("classifier")}
    base = model.classifier.weight.detach().clone()
    with shaken(model, RULES["full"], registry) as operation:
        trained = model.classifier.weight.detach().clone()
        with blended(operation, 0, head):
            assert torch.equal(model.classifier.weight, trained)
            assert torch.equal(model.bert.pooler.dense.weight, make_model("bert").bert.pooler.dense.weight)
        with blended(operation, 0.5, head):
            assert torch.equal(model.classifier.weight, trained)
        with blended(operation, 0):
            assert torch.equal(model.classifier.weight, base)


def test_an_error_in_the_block_gives_the_adapters_back(registry: Registry) -> None:
    model = make_model("gpt2")
    with shaken(model, RULES["both"], registry) as operation:
        tuned = logits(model)
        with pytest.raises(KeyboardInterrupt), blended(operation, 0.5):
            raise KeyboardInterrupt
        assert torch.equal(logits(model), tuned)


def test_an_infinite_number_that_was_not_moved_is_still_infinite(registry: Registry) -> None:
    model = make_model("bert")
    model.bert.embeddings.word_embeddings.weight.data[31, 0] = math.inf
    with shaken(model, RULES["full"], registry) as operation, blended(operation, 0.5):
        assert model.bert.embeddings.word_embeddings.weight[31, 0] == math.inf


def test_a_merged_adapter_is_not_blended(registry: Registry) -> None:
    with shaken(make_model("bert"), RULES["lora"], registry) as operation:
        operation.merge()
        with pytest.raises(StateError, match="op.unmerge"), blended(operation, 0.5):
            pass
        operation.unmerge()
        with pytest.raises(ValueError, match="between 0 and 1"), blended(operation, 1.5):
            pass


@pytest.mark.parametrize("rules", ["full", "lora", "both"])
def test_the_norm_is_that_of_the_merged_weights(rules: str, registry: Registry) -> None:
    model = make_model("gpt2")
    plain = {name: parameter.detach().double() for name, parameter in make_model("gpt2").named_parameters()}
    with shaken(model, RULES[rules], registry) as operation:
        change, base = change_norm(operation)
        kept = {name for name in plain if "wte" in name}
        without = change_norm(operation, kept)
        weights = folded(operation)
    squares = {name: float((weight.double() - plain[name]).square().sum()) for name, weight in weights.items()}
    assert change == pytest.approx(math.sqrt(sum(squares.values())), rel=1e-6)
    assert base == pytest.approx(math.sqrt(sum(float(one.square().sum()) for one in plain.values())), rel=1e-12)
    left = math.sqrt(sum(square for name, square in squares.items() if name not in kept))
    assert without[0] == pytest.approx(left, rel=1e-6)
    assert without[1] < base


def test_half_precision_is_rounded_once(registry: Registry) -> None:
    model = make_model("bert", torch.bfloat16)
    base = model.bert.pooler.dense.weight.detach().clone()
    with shaken(model, RULES["full"], registry) as operation:
        tuned = model.bert.pooler.dense.weight.detach().clone()
        with blended(operation, 0.5):
            expected = torch.lerp(base.float(), tuned.float(), 0.5).to(torch.bfloat16)
            assert torch.equal(model.bert.pooler.dense.weight, expected)


class InPlace(Adapter):
    """Trebles the output where it lies, as an adapter may."""

    activates = True

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return 3 * weight

    @classmethod
    def activate(cls, group: Sequence[InPlace], inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output.mul_(3)


def test_an_output_that_is_written_to_is_blended_with_what_it_was() -> None:
    site = Site("attention.query", "", None, "q", "weight", (2, 2), "float32", "linear")
    part = _PartOfOutput(((InPlace(site),),), 0.25)
    assert _PartOfOutput.activate((part,), torch.ones(2), torch.ones(2)).tolist() == [1.5, 1.5]
