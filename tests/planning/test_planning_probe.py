"""What is measured of a layer: parts told by what they do, and nothing concluded from what only looks alike."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from surgery.architecture import Slice
from surgery.planning import anatomy, draft_architecture, inventory
from surgery.planning.probe import Finding, measure
from surgery.planning.sites import sites_of
from surgery.registry import Registry, Twin, Twins, load_registry
from surgery_transformers.twins import twins_of

WIDTH, INNER = 16, 24


class Layer(nn.Module):
    """A layer with every trap: a query that is one half of a weight, a gate on its result, and maps beside the MLP."""

    def __init__(self, heads: int, head: int, inner: int, changes: Mapping[str, Any]) -> None:
        super().__init__()
        width = heads * head
        self.heads, self.head, self.changes = heads, head, changes
        self.mixed = nn.Linear(width, 2 * width)  # per head: query, then a gate on the result
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.back = nn.Linear(width, width)
        self.one = nn.Linear(width, inner)
        self.two = nn.Linear(width, inner)
        self.three = nn.Linear(inner, width)
        self.low = nn.Linear(width, 4)
        self.high = nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, gate = self.mixed(x).view(batch, length, self.heads, 2, self.head).unbind(3)
        key, value = (map_(x).view(batch, length, self.heads, self.head) for map_ in (self.keys, self.values))
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value) * gate.sigmoid()
        mixed = mixed.reshape(batch, length, width)
        if self.changes.get("residual"):
            mixed = mixed + x
        x = x + self.back(mixed)
        x = x + self.high(self.low(x))
        one, two = self.one(x), self.two(x)
        inner = two * (torch.tanh(one) if not self.changes.get("bilinear") else one)
        if self.changes.get("outside"):
            inner = inner + x.mean(-1, keepdim=True)
        return x + self.three(inner)


class Model(nn.Module):
    def __init__(self, heads: int, head: int, inner: int, changes: Mapping[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(64, heads * head)
        self.layers = nn.ModuleList(Layer(heads, head, inner, changes) for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.words(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x


def words(seed: int, size: int) -> Mapping[str, Tensor]:
    return {"input_ids": torch.randint(64, (1, 7), generator=torch.Generator().manual_seed(seed)).repeat(size, 1)}


def twins(**changes: bool) -> Twins:
    sizes = ({"heads": 4, "head": 8}, {"heads": 6, "head": 4})
    models = [
        Twin(Model(inner=inner, changes=changes, **size).double().eval(), words, size)
        for size, inner in zip(sizes, (40, 28), strict=True)
    ]
    return Twins(tuple(models), {"heads": "heads", "head": "head"}, sizes[0])


def parts(found: Mapping[str, Finding]) -> dict[str, dict[str, str | Slice]]:
    return {path.removeprefix("layers.*."): dict(finding.parts) for path, finding in found.items()}


def test_parts_are_told_by_what_they_do() -> None:
    assert parts(measure(twins())) == {
        "mixed": {"attention.query": Slice("layers.*.mixed", ("heads", 2, -1), 1, 0, 1)},
        "keys": {"attention.key": "layers.*.keys"},
        "values": {"attention.value": "layers.*.values"},
        "back": {"attention.output": "layers.*.back"},
        "one": {"mlp.gate": "layers.*.one"},
        "two": {"mlp.up": "layers.*.two"},
        "three": {"mlp.down": "layers.*.three"},
    }


def test_two_maps_in_a_row_are_no_mlp() -> None:
    assert not {"low", "high"} & parts(measure(twins())).keys()


@pytest.mark.parametrize(
    ("change", "unknown"),
    [
        ("residual", {"mixed", "keys", "values", "back"}),  # what `back` takes is not the attention's result alone
        ("bilinear", {"one", "two", "three"}),  # neither operand passes an activation
        ("outside", {"one", "two", "three"}),  # what `three` takes is not made of the two alone
    ],
)
def test_what_only_looks_alike_is_left_out(change: str, unknown: set[str]) -> None:
    everything = parts(measure(twins())).keys()
    assert parts(measure(twins(**{change: True}))).keys() == everything - unknown


def test_only_layers_with_what_is_wanted_are_measured() -> None:
    assert measure(twins(), ["layers.*.elsewhere"]) == {}
    assert measure(twins(), ["layers.*.mixed"]) == measure(twins())


def test_a_model_that_fails_is_not_measured() -> None:
    def too_long(seed: int, size: int) -> Mapping[str, Tensor]:
        return {"input_ids": torch.full((size, 7), 64)}

    broken = twins()
    models = tuple(Twin(twin.model, too_long, twin.settings) for twin in broken.models)
    assert measure(Twins(models, broken.names, broken.settings)) == {}


LAYOUTS: dict[str, tuple[Callable[[], Any], str, tuple[Any, ...], dict[str, tuple[int, int]]]] = {
    # The view of the weight for the configuration, and role -> (start, length) in the dimension that is narrowed.
    "codegen": (
        lambda: transformers.CodeGenConfig(n_embd=64, n_head=16, n_layer=1, rotary_dim=4),
        "CodeGenForCausalLM",
        (4, 48),
        {"attention.query": (0, 16), "attention.value": (16, 16), "attention.key": (32, 16)},
    ),
    "persimmon": (
        lambda: transformers.PersimmonConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=1),
        "PersimmonForCausalLM",
        (4, 3, 16),
        {"attention.query": (0, 1), "attention.key": (1, 1), "attention.value": (2, 1)},
    ),
    "gpt_bigcode": (
        lambda: transformers.GPTBigCodeConfig(n_embd=64, n_head=4, n_layer=1),
        "GPTBigCodeForCausalLM",
        (1, 6, 16),
        {"attention.query": (0, 4), "attention.key": (4, 1), "attention.value": (5, 1)},
    ),
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.mark.parametrize("kind", LAYOUTS)
def test_fused_layouts_that_no_plugin_describes(kind: str, registry: Registry) -> None:
    config, cls, view, expected = LAYOUTS[kind]
    if registry.architecture(kind):
        pytest.skip(f"a plugin describes {kind}")
    with torch.device("meta"):
        model = getattr(transformers, cls)(config())
    found = inventory(model, registry)
    described = anatomy(found, registry)
    assert described.inference is not None
    fused = [site for site in sites_of(found, described.architecture) if site.slice and site.parameter == "weight"]
    assert {site.role: (site.slice.start, site.slice.length) for site in fused if site.slice} == expected
    assert {site.slice.view for site in fused if site.slice} == {view}
    assert {described.inference.sources[site.role] for site in fused} == {"measurement"}
    assert "measurement" in described.provenance
    assert not described.inference.open


def test_a_draft_holds_what_was_measured(registry: Registry) -> None:
    draft = draft_architecture(LAYOUTS["persimmon"][0](), registry)
    fused = 'Slice("*.self_attn.query_key_value", view=("num_attention_heads", 3, -1), dim=1'
    assert f'"attention.query": {fused}),' in draft.source
    assert f'"attention.value": {fused}, start=2),' in draft.source
    assert not draft.notes


def test_measuring_leaves_no_trace() -> None:
    config = transformers.PersimmonConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=1)
    before = (torch.get_rng_state(), random.getstate(), torch.get_default_dtype(), config.to_dict())
    level = transformers.logging.get_verbosity()
    built = twins_of(config, "PersimmonForCausalLM")
    assert built is not None and measure(built)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), torch.get_default_dtype(), config.to_dict()) == before[1:]
    assert transformers.logging.get_verbosity() == level


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "no such type"},
        {"model_type": "persimmon", "hidden_size": "wide"},
        {"model_type": ["persimmon"]},
        {"model_type": "persimmon", "a_size_that_nobody_knows": 10**9, "num_attention_heads": -1},
        {"model_type": "persimmon", "num_labels": 10**9},
    ],
)
def test_configurations_of_strangers_build_small_models_or_none(config: dict[str, Any]) -> None:
    built = twins_of(config, "")
    for twin in built.models if built else ():
        assert sum(parameter.numel() for parameter in twin.model.parameters()) < 2_000_000


def test_weights_that_cannot_be_drawn_are_no_hindrance() -> None:
    """Small models get weights of their own, so a spread that is no number changes nothing of what is measured."""
    config = transformers.PersimmonConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=1)
    usual = twins_of(config, "PersimmonForCausalLM")
    config.initializer_range = float("nan")
    strange = twins_of(config, "PersimmonForCausalLM")
    assert usual is not None and strange is not None
    assert parts(measure(strange)) == parts(measure(usual)) != {}


def test_layers_that_are_said_by_number_are_kept_by_number() -> None:
    """NeoMME's windows are said of the layers that have another one than the rest."""
    config = transformers.NeoMMEConfig(num_hidden_layers=8, head_dim=32)
    config.rope_parameters["full_attention"]["partial_rotary_factor"] = 0.5
    built = twins_of(config, "NeoMMEForMaskedLM")
    assert built is not None
    small = built.models[0].model.config
    assert small.layer_types == ["sliding_attention", "full_attention"]
    assert [layer.sliding_window for layer in small.per_layer_config] == [64, None]
    assert any("mlp.up" in found for found in parts(measure(built)).values())


def test_scores_may_be_written_the_other_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys times queries, and the softmax over the keys' axis: the query is still what asks."""
    expected, einsum, softmax = parts(measure(twins())), torch.einsum, Tensor.softmax
    turned = {"bqhd,bkhd->bhqk": "bqhd,bkhd->bhkq", "bhqk,bkhd->bqhd": "bhkq,bkhd->bqhd"}
    monkeypatch.setattr(torch, "einsum", lambda how, *tensors: einsum(turned[how], *tensors))
    monkeypatch.setattr(Tensor, "softmax", lambda scores, _: softmax(scores, -2))
    assert parts(measure(twins())) == expected


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.device("meta"), torch.no_grad])
def test_what_is_measured_does_not_depend_on_the_callers_modes(
    mode: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers.PersimmonConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=2, vocab_size=100, intermediate_size=48
    )
    registry = load_registry()
    with torch.device("meta"):
        model = transformers.PersimmonForCausalLM(config)
    found = inventory(model, registry)
    monkeypatch.setattr("surgery.planning.measured._KNOWN", {})
    with mode():
        described = anatomy(found, registry)
    assert "attention.query" in {site.role for site in sites_of(found, described.architecture)}
