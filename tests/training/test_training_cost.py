"""The cost model against the real step: PyTorch's counter, saved tensors, gradients and a real optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch.nn import functional

from surgery.operation import operate
from surgery.planning import anatomy, decide, inventory
from surgery.planning.cost import Batch, Cost, predict
from surgery.planning.cost.tape import Tape, Value
from surgery.planning.sites import sites_of
from surgery.registry import Registry, load_registry
from surgery.spec import Rule, Spec
from surgery.training.memory import StepCost, flop_counter, measure_step, optimizer_bytes, storage_bytes

HEAD = {"role": r"head\..*", "adapter": "full", "tied": "share"}
ARMS: dict[str, list[dict[str, Any]]] = {
    "full": [{"role": ".*", "adapter": "full", "tied": "share"}],
    "lora": [{"role": r"attention\.(query|value)", "adapter": "lora", "rank": 3, "dropout": 0.1}],
    "lora-all": [{"role": r"(attention|mlp)\..*", "adapter": "lora", "rank": 4}],
    "bias": [{"role": ".*", "adapter": "bias-only"}],
    "head": [],
}
SIZES = {"small": (64, 4, 2, 3, 12), "larger": (192, 6, 4, 2, 48)}  # width, heads, layers, batch, length
WORDS = 301


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(autouse=True)
def quick() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def build(family: str, size: str, dropout: float, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    import transformers

    width, heads, layers, _, _ = SIZES[size]
    if family == "bert":
        config: Any = transformers.BertConfig(
            vocab_size=WORDS, hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers,
            intermediate_size=4 * width, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **options,
        )  # fmt: skip
        model: Any = transformers.BertForSequenceClassification(config)
    elif family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=WORDS, n_embd=width, n_head=heads, n_layer=layers, n_positions=64, resid_pdrop=dropout,
            attn_pdrop=dropout, embd_pdrop=dropout, bos_token_id=0, eos_token_id=0, **options,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=WORDS, hidden_size=width, num_attention_heads=heads, num_key_value_heads=heads // 2,
            num_hidden_layers=layers, intermediate_size=int(2.5 * width), attention_bias=True, mlp_bias=True,
            attention_dropout=dropout, **options,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    model.config.use_cache = False
    return model.to(dtype)


@dataclass
class Step:
    """A step, predicted and measured."""

    predicted: Cost
    measured: StepCost
    weights: int
    gradients: int
    optimizer: int


def step(registry: Registry, model: Any, rules: list[dict[str, Any]], size: str, *, padded: bool = False) -> Step:
    spec = Spec(name="cost", rules=[Rule(**rule) for rule in rules])
    found = inventory(model, registry)
    described = anatomy(found, registry)
    plan = decide(spec, found, described, registry)
    _, _, _, rows, length = SIZES[size]
    told = predict(plan, found, sites_of(found, described.architecture), registry, Batch(rows, length, padded))
    ids = torch.randint(1, WORDS, (rows, length))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, length - 2 :] = 0

    def loss(batch: Any) -> torch.Tensor:
        logits = model(**batch).logits.float()
        if logits.ndim == 2:
            return functional.cross_entropy(logits, torch.zeros(rows, dtype=torch.long), reduction="none").sum()
        return functional.cross_entropy(logits.flatten(0, 1), ids.flatten().clone(), reduction="none").sum()

    with operate(model, plan, registry=registry) as operation:
        batch = {"input_ids": ids, "attention_mask": mask}
        measured = measure_step(model, loss, batch)
        trainable = list(operation.trainable().values())
        assert all(parameter.grad is None for parameter in trainable)
        model.train()
        loss(batch).backward()
        optimizer = torch.optim.AdamW(trainable, fused=True)
        optimizer.step()
        weights = storage_bytes((*model.parameters(), *model.buffers()))
        gradients = storage_bytes(p.grad for p in trainable if p.grad is not None)
        return Step(told, measured, weights, gradients, optimizer_bytes(optimizer))


def assert_close(found: Step) -> None:
    told, measured = found.predicted, found.measured
    assert told.why == ""
    assert told.flops == pytest.approx((measured.forward, measured.backward), rel=0.01)
    assert told.kept == pytest.approx(measured.activations, rel=0.10)
    assert told.weights == pytest.approx(found.weights, rel=0.10)
    assert told.gradients == pytest.approx(found.gradients, rel=0.10)
    assert told.optimizer == pytest.approx(found.optimizer, rel=0.10)


def rules_of(family: str, arm: str) -> list[dict[str, Any]]:
    head = [HEAD] if family == "bert" and arm != "full" else []
    if arm == "head" and family != "bert":
        return [{"role": "norm.final", "adapter": "full"}]
    return [*head, *ARMS[arm]]


@pytest.mark.parametrize(("family", "arm", "size"), list(product(("bert", "gpt2", "llama"), ARMS, SIZES)))
def test_a_step_costs_what_was_predicted(registry: Registry, family: str, arm: str, size: str) -> None:
    for dropout in (0.0, 0.1):
        found = step(registry, build(family, size, dropout), rules_of(family, arm), size)
        assert_close(found)
        # Products are counted and not estimated: the model is exact.
        assert found.predicted.flops == (found.measured.forward, found.measured.backward)
        assert found.predicted.kept == pytest.approx(found.measured.activations, rel=0.01)
        for name in ("weights", "gradients", "optimizer"):
            assert getattr(found.predicted, name) == pytest.approx(getattr(found, name), rel=0.02)


@pytest.mark.parametrize(("family", "arm"), list(product(("bert", "gpt2", "llama"), ("full", "lora", "bias"))))
def test_padding_and_bfloat16_are_predicted(registry: Registry, family: str, arm: str) -> None:
    for dropout in (0.0, 0.1):
        assert_close(step(registry, build(family, "small", dropout), rules_of(family, arm), "small", padded=True))
    assert_close(step(registry, build(family, "small", 0.0, torch.bfloat16), rules_of(family, arm), "small"))


def test_eager_attention_is_predicted(registry: Registry) -> None:
    for family in ("bert", "gpt2", "llama"):
        model = build(family, "small", 0.0)
        model.set_attn_implementation("eager")
        assert_close(step(registry, model, rules_of(family, "lora"), "small"))


def test_a_part_of_a_fused_weight_is_predicted(registry: Registry) -> None:
    rules = [{"role": r"attention\.query", "adapter": "full"}]
    assert_close(step(registry, build("gpt2", "small", 0.0), rules, "small"))


def test_training_one_upper_layer_stops_the_way_back_there(registry: Registry) -> None:
    rules = [{"role": r"mlp\.down", "layers": [-1], "adapter": "lora", "rank": 2}]
    upper = step(registry, build("llama", "larger", 0.0), rules, "larger")
    assert_close(upper)
    lower = step(registry, build("llama", "larger", 0.0), [{**rules[0], "layers": [0]}], "larger")
    assert_close(lower)
    assert upper.measured.backward < 0.2 * lower.measured.backward


def test_the_counter_sees_fused_attention() -> None:
    query = torch.randn(2, 3, 8, 4, requires_grad=True)
    with flop_counter() as counter:
        functional.scaled_dot_product_attention(query, query, query)
    assert counter.get_total_flops() == 2 * 2 * (2 * 3 * 8 * 8 * 4)


def test_measuring_leaves_nothing(registry: Registry) -> None:
    model = build("bert", "small", 0.1)
    state = torch.random.get_rng_state()
    model.classifier.weight.grad = kept = torch.ones_like(model.classifier.weight)
    measure_step(model, lambda batch: model(batch).logits.sum(), torch.ones(1, 4, dtype=torch.long))
    assert model.classifier.weight.grad is kept
    assert model.bert.pooler.dense.weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)


def _forgets_the_input_gradient(self: Tape, rows: int, inner: int, columns: int, *, left: bool, right: bool) -> None:
    _PRODUCT(self, rows, inner, columns, left=False, right=right)


def _counts_frozen_weights(self: Tape, rows: int, inner: int, columns: int, *, left: bool, right: bool) -> None:
    _PRODUCT(self, rows, inner, columns, left=left, right=True)


def _goes_all_the_way_down(self: Tape, rows: int, inner: int, columns: int, *, left: bool, right: bool) -> None:
    _PRODUCT(self, rows, inner, columns, left=True, right=right)


def _keeps_every_input(self: Tape, x: Value, columns: int, *, weight: bool, bias: bool) -> Value:
    self.keep(x)
    return _LINEAR(self, x, columns, weight=weight, bias=bias)


def _keeps_nothing(self: Tape, value: Value) -> None:
    pass


def _counts_twice(self: Tape, value: Value) -> None:
    self.saved[self.part] += (value.base or value).bytes


def _without_a_mask(self: Tape, x: Value, probability: float) -> Value:
    return x.like()


_PRODUCT, _LINEAR = Tape.product, Tape.linear


@pytest.mark.parametrize(
    ("method", "mutant", "arms"),
    [
        ("product", _forgets_the_input_gradient, ("full", "lora", "bias")),
        ("product", _counts_frozen_weights, ("lora", "bias")),
        ("product", _goes_all_the_way_down, ("upper",)),
        ("linear", _keeps_every_input, ("lora", "bias")),
        ("keep", _keeps_nothing, ("full", "lora", "bias")),
        ("dropout", _without_a_mask, ("full", "lora", "bias")),
    ],
)
def test_the_bars_catch_a_model_that_is_wrong(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, method: str, mutant: Any, arms: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Tape, method, mutant)
    for arm in arms:
        upper = [{"role": r"mlp\.down", "layers": [-1], "adapter": "lora", "rank": 2}]
        rules = upper if arm == "upper" else rules_of("gpt2", arm)
        with pytest.raises(AssertionError):
            assert_close(step(registry, build("gpt2", "larger", 0.1), rules, "larger"))


def test_the_bars_catch_a_model_that_counts_shared_inputs_for_each_map(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tape, "keep", _counts_twice)
    with pytest.raises(AssertionError):
        assert_close(step(registry, build("llama", "larger", 0.0), rules_of("llama", "full"), "larger"))


COVERED = (
    "roberta", "electra", "distilbert", "opt", "gpt_neox", "gptj", "mistral", "qwen3", "gemma", "phi", "phi3",
    "starcoder2", "falcon", "modernbert", "olmo2",
)  # fmt: skip


@pytest.mark.parametrize("model_type", COVERED)
def test_other_architectures_are_predicted_by_their_roles(registry: Registry, model_type: str) -> None:
    from surgery.testing.tiny import Tiny, classes_of, tiny_config, tiny_model

    config = tiny_config(model_type)
    name = next(n for n in classes_of(model_type) if n.endswith(("ForCausalLM", "ForMaskedLM")))
    tiny = tiny_model(name, config)
    assert isinstance(tiny, Tiny), tiny
    model: Any = tiny.model
    model.config.use_cache = False
    ids = tiny.batch["input_ids"]
    for rules in (ARMS["full"], [{"role": r"attention\.(query|value)", "adapter": "lora", "rank": 2}]):
        spec = Spec(name="cost", rules=[Rule(**rule) for rule in rules])
        found = inventory(model, registry)
        described = anatomy(found, registry)
        plan = decide(spec, found, described, registry)
        told = predict(plan, found, sites_of(found, described.architecture), registry, Batch(*ids.shape))
        assert told.why == ""

        def loss(batch: Any) -> torch.Tensor:
            logits = model(**batch).logits.float().flatten(0, -2)
            return functional.cross_entropy(logits, ids.flatten().clone(), reduction="none").sum()

        with operate(model, plan, registry=registry):
            measured = measure_step(model, loss, {"input_ids": ids})
        assert told.flops == pytest.approx((measured.forward, measured.backward), rel=0.01)
        assert told.kept == pytest.approx(measured.activations, rel=0.10)
