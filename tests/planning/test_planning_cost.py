"""What the cost model says, whatever the model: bounds, proportions, and when it says that it does not know."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import surgery
from surgery.adapter import AdapterType
from surgery.errors import PluginError
from surgery.planning import Anatomy, Inventory, anatomy, decide, inventory
from surgery.planning.cost import Batch, Cost, human_flops, predict, render_cost
from surgery.planning.cost.tape import Tape, Value
from surgery.planning.sites import sites_of
from surgery.registry import Registry, load_registry
from surgery.spec import Options, Rule, Spec

FULL = {"role": ".*", "adapter": "full", "tied": "share"}


@lru_cache
def registry() -> Registry:
    return load_registry()


@lru_cache(maxsize=64)
def described(family: str, heads: int, width: int, layers: int) -> tuple[Inventory, Anatomy]:
    import torch
    import transformers

    hidden = heads * width
    made: dict[str, Any] = {
        "bert": lambda: transformers.BertForMaskedLM(
            transformers.BertConfig(
                vocab_size=50, hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=layers,
                intermediate_size=3 * hidden,
            )
        ),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=50, n_embd=hidden, n_head=heads, n_layer=layers, bos_token_id=0, eos_token_id=0
            )
        ),
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=50, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=1,
                num_hidden_layers=layers, intermediate_size=2 * hidden, attention_bias=True,
            )
        ),
    }  # fmt: skip
    with torch.device("meta"):
        model = made[family]()
    found = inventory(model, registry())
    return found, anatomy(found, registry())


def cost(subject: tuple[Inventory, Anatomy], rules: list[dict[str, Any]], batch: Batch, **options: Any) -> Cost:
    found, known = subject
    spec = Spec(name="cost", rules=[Rule(**rule) for rule in rules])
    plan = decide(spec, found, known, registry())
    return predict(plan, found, sites_of(found, known.architecture), registry(), batch, **options)


MODELS = st.builds(
    described,
    st.sampled_from(("bert", "gpt2", "llama")),
    st.sampled_from((1, 2, 4)),
    st.sampled_from((4, 8)),
    st.integers(1, 3),
)
BATCHES = st.builds(Batch, st.integers(1, 9), st.integers(1, 33), st.booleans())


@settings(max_examples=40, deadline=None)
@given(subject=MODELS, batch=BATCHES, rank=st.integers(1, 2), device=st.sampled_from(("cpu", "cuda")))
def test_adapters_never_cost_more_than_full_tuning_where_they_must_not(
    subject: tuple[Inventory, Anatomy], batch: Batch, rank: int, device: str
) -> None:
    adapter = {"role": r"attention\.(query|value)", "adapter": "lora", "rank": rank}
    full = cost(subject, [FULL], batch, device=device)
    lora = cost(subject, [adapter], batch, device=device)
    bias = cost(subject, [{"role": ".*", "adapter": "bias-only"}], batch, device=device)
    for each in (full, lora, bias):
        assert each.flops is not None
        assert each.activations is not None
        assert min(*each.forward.values(), *each.backward.values(), *each.activations.values(), each.weights) >= 0  # type: ignore[union-attr]
    for each in (lora, bias):
        assert each.gradients <= full.gradients
        assert each.optimizer <= full.optimizer
        assert each.flops[1] < full.flops[1]  # type: ignore[index]
    assert bias.flops[0] == full.flops[0]  # type: ignore[index]
    assert lora.flops[0] == full.flops[0] + lora.forward["adapters"]  # type: ignore[index]
    assert bias.kept < full.kept  # type: ignore[operator]


@settings(max_examples=25, deadline=None)
@given(subject=MODELS, size=st.integers(1, 8), length=st.integers(1, 32), factor=st.integers(2, 5))
def test_work_grows_with_the_batch_and_more_than_that_with_the_length(
    subject: tuple[Inventory, Anatomy], size: int, length: int, factor: int
) -> None:
    small = cost(subject, [FULL], Batch(size, length))
    more = cost(subject, [FULL], Batch(size * factor, length))
    longer = cost(subject, [FULL], Batch(size, length * factor))
    assert more.flops == tuple(factor * work for work in small.flops)  # type: ignore[union-attr]
    assert more.kept <= factor * small.kept  # type: ignore[operator]
    assert all(a > b for a, b in zip(longer.flops, more.flops, strict=True))  # type: ignore[arg-type]
    assert (more.weights, more.gradients, more.optimizer) == (small.weights, small.gradients, small.optimizer)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_the_way_back_ends_at_the_lowest_layer_that_trains(family: str) -> None:
    subject = described(family, 2, 8, 3)
    work = [
        cost(subject, [{"role": r"mlp\.down", "layers": [layer], "adapter": "lora", "rank": 1}], Batch(2, 4)).flops
        for layer in range(3)
    ]
    backward = [flops[1] for flops in work if flops]
    assert backward[0] > backward[1] > backward[2]
    assert backward[0] - backward[1] == backward[1] - backward[2]


def test_a_step_by_hand() -> None:
    """One linear map of 3 to 5 features on 2 rows: 60 operations, and as many for each gradient."""
    for grad in (False, True):
        for weight in (False, True):
            tape = Tape(part="here")
            output = tape.linear(Value(2, 3, 4, grad), 5, weight=weight, bias=False)
            assert tape.forward["here"] == 60
            assert tape.backward["here"] == 60 * (grad + weight)
            assert tape.saved["here"] == (2 * 3 * 4 if weight else 0)
            assert output.grad is (grad or weight)


def test_gpt2_by_hand() -> None:
    """2 layers, d = 16, 2 heads, B = 3, L = 5: 12 d^2 for each token in the maps, 4 L d in attention, and the head."""
    batch = Batch(3, 5)
    told = cost(described("gpt2", 2, 8, 2), [FULL], batch)
    assert told.forward == {
        "linear maps": 2 * 2 * 15 * 12 * 16**2,
        "attention": 2 * 4 * 15 * 5 * 16,
        "head and loss": 2 * 15 * 16 * 50,
    }
    # Dropout on attention's weights: written out, two gradients for each product.
    assert told.backward == {part: 2 * work for part, work in told.forward.items()}
    on_gpu = cost(described("gpt2", 2, 8, 2), [FULL], batch, device="cuda")
    assert on_gpu.backward["attention"] == 2.5 * told.forward["attention"]  # type: ignore[index]
    assert on_gpu.activations["dropout masks"] * 4 < told.activations["dropout masks"]  # type: ignore[index]


def test_what_is_not_known_is_said() -> None:
    subject = described("bert", 2, 8, 1)
    told = cost(subject, [{"role": r"attention\.query", "adapter": "ia3"}], Batch(1, 4))
    assert told.why == "the adapter 'ia3' does not say what it computes"
    assert told.flops is None
    assert told.kept is None
    assert told.gradients > 0
    text = render_cost(told)
    assert "not predicted: the adapter 'ia3' does not say what it computes" in text
    assert "FLOP" not in text
    mixed = cost(subject, [FULL], Batch(1, 4), precision="bf16")
    assert mixed.flops is not None
    assert mixed.kept is None
    assert "mixed precision" in render_cost(mixed)


@pytest.mark.parametrize(
    ("model_type", "why"),
    [("mixtral", "moe.router"), ("t5", "embedding.relative"), ("albert", "layers are computed with the weights of 1")],
)
def test_architectures_that_are_not_walked_are_said(model_type: str, why: str) -> None:
    import torch
    import transformers

    small = {"num_hidden_layers": 2, "num_layers": 2, "num_local_experts": 2, "hidden_size": 16, "d_model": 16,
             "num_attention_heads": 2, "num_key_value_heads": 2, "num_heads": 2, "intermediate_size": 16, "vocab_size": 9,
             "embedding_size": 16, "dense_act_fn": "relu", "hidden_act": "gelu"}  # fmt: skip
    config = transformers.CONFIG_MAPPING[model_type]()
    for name, value in small.items():
        if name in config.to_dict():
            setattr(config, name, value)
    if model_type == "t5":
        config.hidden_act = "relu"
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    found = inventory(model, registry())
    told = cost((found, anatomy(found, registry())), [FULL], Batch(1, 4))
    assert why in told.why


class Boasting(AdapterType[Options]):
    """Says something that is no work."""

    name = "boasting"
    summary = "for tests"

    def claims(self, site: surgery.Site) -> bool:
        return site.is_matrix

    def parameters(self, site: surgery.Site, options: Options) -> int:
        return 1

    def build(self, *_: Any) -> Any:
        raise NotImplementedError

    def work(self, site: surgery.Site, options: Options) -> Any:
        return "much"


def test_an_adapter_that_answers_nonsense_is_named() -> None:
    class Plugin:
        @staticmethod
        @surgery.hookimpl
        def surgery_adapters() -> list[Any]:
            return [Boasting()]

    known = load_registry(extra=[Plugin])
    found, told = described("bert", 2, 8, 1)
    plan = decide(Spec(name="x", rules=[Rule(role=r"mlp\..*", adapter="boasting")]), found, told, known)
    with pytest.raises(PluginError, match="work must return a Work or None, not 'much'"):
        predict(plan, found, sites_of(found, told.architecture), known, Batch(1, 4))


@pytest.mark.parametrize(
    ("work", "text"),
    [
        (0, "0 FLOP"), (999, "999 FLOP"), (1e3, "1.00 kFLOP"), (22.04e9, "22.0 GFLOP"), (9.999e9, "10.0 GFLOP"),
        (695.8e9, "696 GFLOP"), (99.96e9, "100 GFLOP"), (999.7e9, "1.00 TFLOP"), (3.5e15, "3.50 PFLOP"),
    ],
)  # fmt: skip
def test_work_is_told_in_three_digits(work: float, text: str) -> None:
    assert human_flops(work) == text
