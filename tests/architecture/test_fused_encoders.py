"""Slices mean what they say: an adapter on a part does what it does on an unfused copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from families import build
from torch import nn
from torch.nn import functional as F

from surgery import Rule, Spec, load_registry, operate, plan, sites

REGISTRY = load_registry()
HEADS = 2

Split = Callable[[torch.Tensor], dict[str, torch.Tensor]]


def modernbert_attention(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """As its forward reads the output: `qkv.view(*input_shape, 3, -1, head_dim).unbind(-3)`."""
    query, key, value = weight.view(3, HEADS, -1, *weight.shape[1:]).flatten(1, 2).unbind()
    return {"attention.query": query, "attention.key": key, "attention.value": value}


def modernbert_mlp(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """As its forward reads the output: `input, gate = Wi(x).chunk(2)`, then `act(input) * gate`."""
    activated, linear = weight.chunk(2)
    return {"mlp.gate": activated, "mlp.up": linear}


def deberta_attention(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """As its forward cuts the weight where queries come from elsewhere."""
    parts = weight.chunk(HEADS * 3)
    query, key, value = (torch.cat([parts[i * 3 + k] for i in range(HEADS)]) for k in range(3))
    return {"attention.query": query, "attention.key": key, "attention.value": value}


# Unfused copies -----------------------------------------------------------------------------------------------------


class Unfused(nn.Module):
    """Base of modules with one linear child for each part of a fused weight."""

    def __init__(self, original: nn.Module, parts: dict[str, torch.Tensor], biases: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.original = original
        for role, weight in parts.items():
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=role in biases, dtype=weight.dtype)
            linear.weight = nn.Parameter(weight.clone())
            if role in biases:
                linear.bias = nn.Parameter(biases[role].clone())
            self.add_module(role.partition(".")[2], linear)


class ModernBertAttention(Unfused):
    def forward(self, hidden: torch.Tensor, position_embeddings: Any, attention_mask: Any, **_: Any) -> Any:
        from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

        heads = [part(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        query, key = apply_rotary_pos_emb(heads[0], heads[1], *position_embeddings, unsqueeze_dim=1)
        scores = query @ key.mT * query.shape[-1] ** -0.5
        if attention_mask is not None:
            scores = scores + attention_mask
        mixed = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ heads[2]
        return self.original.Wo(mixed.transpose(1, 2).flatten(2)), None


class ModernBertMlp(Unfused):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.original.Wo(F.gelu(self.gate(hidden)) * self.up(hidden))


class DebertaAttention(Unfused):
    def forward(self, hidden: torch.Tensor, mask: torch.Tensor, *_: Any, **given: Any) -> Any:
        from transformers.models.deberta.modeling_deberta import scaled_size_sqrt

        query, key, value = (
            part(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        factor = 1 + len(self.original.pos_att_type)
        query = query / scaled_size_sqrt(query, factor).to(query.dtype)
        scores = query @ key.mT
        if given["rel_embeddings"] is not None:
            scores = scores + self.original.disentangled_att_bias(
                query, key, given["relative_pos"], given["rel_embeddings"], factor
            )
        scores = scores.masked_fill(~mask.bool(), torch.finfo(scores.dtype).min)
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2), None


def unfused_modernbert(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        for name, kind, fused, split in (
            ("attn", ModernBertAttention, "Wqkv", modernbert_attention),
            ("mlp", ModernBertMlp, "Wi", modernbert_mlp),
        ):
            module = getattr(layer, name)
            linear = getattr(module, fused)
            biases = {} if linear.bias is None else split(linear.bias)
            setattr(layer, name, kind(module, split(linear.weight), biases))
    return model


def unfused_deberta(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in model.deberta.encoder.layer:
        old = layer.attention.self
        biases = {"attention.query": old.q_bias, "attention.value": old.v_bias}
        layer.attention.self = DebertaAttention(old, deberta_attention(old.in_proj.weight), biases)
    return model


CASES = [
    (name, unfuse, module, split, role)
    for name, unfuse, groups in (
        (
            "ModernBertForMaskedLM",
            unfused_modernbert,
            (("attn.Wqkv", modernbert_attention), ("mlp.Wi", modernbert_mlp)),
        ),
        (
            "ModernBertForMaskedLM-biases",
            unfused_modernbert,
            (("attn.Wqkv", modernbert_attention), ("mlp.Wi", modernbert_mlp)),
        ),
        ("DebertaForMaskedLM", unfused_deberta, (("attention.self.in_proj", deberta_attention),)),
        ("DebertaForMaskedLM-relative", unfused_deberta, (("attention.self.in_proj", deberta_attention),)),
    )
    for module, split in groups
    for role in (
        ("mlp.gate", "mlp.up") if module == "mlp.Wi" else ("attention.query", "attention.key", "attention.value")
    )
]


def _double(batch: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }


def _randomise(trainable: dict[str, nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(trainable.items()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3)


@pytest.mark.parametrize(
    ("name", "unfuse", "module", "split", "role"), CASES, ids=[f"{case[0]}-{case[4]}" for case in CASES]
)
@torch.no_grad()
def test_an_adapter_on_a_part_is_one_on_the_unfused_projection(
    name: str, unfuse: Callable[[nn.Module], nn.Module], module: str, split: Split, role: str
) -> None:
    fused, batch = build(name)
    fused = fused.double()
    apart = unfuse(fused)
    base = fused(**batch).logits
    torch.testing.assert_close(apart(**batch).logits, base, rtol=1e-6, atol=1e-9)  # the copy is the same model

    stem = module.rpartition(".")[0]
    here = plan(
        # DeBERTa's queries of positions have the role, too; the rule means the fused weight alone.
        Spec(name="x", rules=[Rule(role=role, target=rf".*\.{module}", adapter="lora", rank=2)]), fused, REGISTRY
    )  # fmt: skip
    there = plan(
        Spec(name="x", rules=[Rule(target=rf".*\.{stem}\.{role.partition('.')[2]}", adapter="lora", rank=2)]), apart, REGISTRY
    )  # fmt: skip
    assert len(here.edits) == len(there.edits) == 2
    before = [split(fused.get_submodule(edit.site.path).weight.clone()) for edit in here.edits]
    with operate(fused, here, registry=REGISTRY) as op, operate(apart, there, registry=REGISTRY) as other:
        _randomise(op.trainable())
        _randomise(other.trainable())
        live = fused(**batch).logits
        assert not torch.allclose(live, base, rtol=1e-3)
        torch.testing.assert_close(live, apart(**batch).logits, rtol=1e-6, atol=1e-9)
        op.merge()
        other.merge()
        torch.testing.assert_close(fused(**batch).logits, live, rtol=1e-6, atol=1e-9)
        for edit, twin, old in zip(here.edits, there.edits, before, strict=True):
            new = split(fused.get_submodule(edit.site.path).weight)
            for part in old:
                assert torch.equal(new[part], old[part]) == (part != role)
            torch.testing.assert_close(new[role], apart.get_submodule(twin.site.path).weight)


# Which operand passes the activation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["ModernBertForMaskedLM", "T5ForConditionalGeneration-gated", "MT5ForConditionalGeneration", "UMT5EncoderModel"],
)
@torch.no_grad()
def test_the_gate_passes_the_activation_and_up_does_not(name: str) -> None:
    """What goes into `mlp.down` doubles with the linear operand, and does anything else with the activated one."""
    model, batch = build(name)
    model = model.double()
    found = sites(model, REGISTRY)
    stack = found[[site.layer for site in found].index(0)].stack
    first = {site.role: site for site in found if (site.stack, site.layer) == (stack, 0)}
    seen: list[torch.Tensor] = []
    model.get_submodule(first["mlp.down"].path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    def with_twice(role: str) -> torch.Tensor:
        site = first[role]
        weight = model.get_parameter(site.name)
        rows = list(site.slice.indices()) if site.slice else slice(None)
        seen.clear()
        weight[rows] *= 2
        model(**batch)
        weight[rows] /= 2
        return seen[0]

    model(**batch)
    before = seen[0]
    torch.testing.assert_close(with_twice("mlp.up"), 2 * before)
    assert not torch.allclose(with_twice("mlp.gate"), 2 * before, rtol=1e-2)


# Weights that a model reads past the module that holds them ----------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "DebertaForMaskedLM-not-legacy",
        "DebertaForMaskedLM-relative",
        "DebertaV2ForMaskedLM-not-legacy",
        "DebertaV2ForMaskedLM-v3",
    ],
)
@pytest.mark.parametrize("role", ["embedding.token", "embedding.relative"])
@torch.no_grad()
def test_a_live_adapter_on_a_table_is_the_merged_one(name: str, role: str) -> None:
    """With one on the lookups alone, an output that multiplies by the table would miss it until the merge."""
    model, batch = build(name)
    model = model.double()
    if not any(site.role == role for site in sites(model, REGISTRY)):
        assert "legacy" in name
        return
    rule = Rule(role=role, adapter="lora", rank=2, tied="share", allow_oversized=True)
    base = model(**batch).logits
    with operate(model, plan(Spec(name="x", rules=[rule]), model, REGISTRY), registry=REGISTRY) as op:
        _randomise(op.trainable())
        live = model(**batch).logits
        assert not torch.allclose(live, base)
        op.merge()
        torch.testing.assert_close(model(**batch).logits, live)


# Layers that are passed several times --------------------------------------------------------------------------------


def _layers(found: Any) -> Iterator[int]:
    return (site.layer for site in found if site.role == "attention.query" and site.layer is not None)


def test_albert_has_as_many_layers_as_it_stores_and_probes_count_the_passes() -> None:
    model, batch = build("AlbertForMaskedLM-groups")
    assert sorted(set(_layers(sites(model, REGISTRY)))) == [0, 1, 2, 3, 4, 5]  # 2 groups of 3
    rule = Rule(role=r"attention\.query", layers="4", adapter="lora", rank=2)
    decided = plan(Spec(name="x", rules=[rule]), model, REGISTRY)
    (edit,) = decided.edits
    assert edit.site.path == "albert.encoder.albert_layer_groups.1.albert_layers.1.attention.query"
    with operate(model, decided, registry=REGISTRY) as op:
        assert set(op.probe(**batch).values()) == {2}  # 4 logical layers are 2 passes through each of 2 groups
