"""Parts of fused weights mean what they say: copies with separate projections answer the same, adapted or not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import build
from torch import nn

from surgery import Rule, Site, Spec, load_registry, operate, plan, sites
from surgery.errors import PlanError
from surgery.planning.inventory import Inventory, ParameterEntry
from surgery.planning.sites import sites_of

REGISTRY = load_registry()
QKV = ("attention.query", "attention.key", "attention.value")
NAMES = {
    "attention.query": "q_proj", "attention.key": "k_proj", "attention.value": "v_proj", "mlp.gate": "gate_proj",
    "mlp.up": "up_proj",
}  # fmt: skip


class Attention(nn.Module):
    """Attention over separate projections, written out: heads stand one after another in each of them."""

    def __init__(self, parts: dict[str, nn.Linear], output: nn.Module, heads: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (parts[role] for role in QKV)
        self.output, self.heads, self.width = output, heads, self.q_proj.out_features // heads

    def split(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, length, heads * width) -> (batch, heads, length, width); a group of queries shares a key."""
        split = states.unflatten(-1, (-1, self.width)).transpose(1, 2)
        return split.repeat_interleave(self.heads // split.shape[1], dim=1)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None, **given: Any) -> Any:
        query, key, value = (self.split(part(hidden_states)) for part in (self.q_proj, self.k_proj, self.v_proj))
        if given.get("position_embeddings") is not None and given.get("alibi") is None:  # Falcon has either
            query, key = (turned(states, *given["position_embeddings"]) for states in (query, key))
        length = hidden_states.shape[1]
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.width) + self.distances(length, **given)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ value
        output = self.output(mixed.transpose(1, 2).flatten(2))
        return (output if residual is None else output + residual), None

    def distances(self, length: int, **given: Any) -> torch.Tensor | float:
        """What is added to the scores of each head for the distance."""
        if given.get("position_bias") is not None:  # MPT: (heads, 1, longest)
            return given["position_bias"][:, :, -length:]
        alibi = given.get("alibi")
        if alibi is None:
            return 0.0
        if alibi.dim() == 3:  # BLOOM: (batch * heads, 1, length)
            return alibi.unflatten(0, (-1, self.heads))
        return alibi / math.sqrt(self.width)  # Falcon: (batch, heads, 1, length), scaled as scores are


class GatedMlp(nn.Module):
    def __init__(self, parts: dict[str, nn.Linear], down: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = parts["mlp.gate"], parts["mlp.up"], down

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


def turned(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on the first entries of each head."""
    rotated, rest = states[..., : cos.shape[-1]], states[..., cos.shape[-1] :]
    first, second = rotated.chunk(2, dim=-1)
    return torch.cat((rotated * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None], rest), -1)


def separate(model: nn.Module, path: str, roles: tuple[str, ...]) -> dict[str, nn.Linear]:
    """The parts of the fused module at `path`, each as a linear module of its own."""
    fused = model.get_submodule(path)
    found: dict[str, dict[str, Site]] = {role: {} for role in roles}
    for site in sites(model, REGISTRY):
        if site.path == path:
            found[site.role][site.parameter] = site
    made = {}
    for role, parts in found.items():
        rows = {name: getattr(fused, name).detach()[list(site.slice.indices())] for name, site in parts.items()}
        linear = nn.Linear(rows["weight"].shape[1], rows["weight"].shape[0], bias="bias" in rows).double()
        linear.load_state_dict(rows)
        made[role] = linear
    return made


def attention(holder: str, fused: str, output: str) -> Callable[[nn.Module, nn.Module], None]:
    def apply(model: nn.Module, target: nn.Module) -> None:
        layers = [name for name, _ in target.named_modules() if name.endswith(f".{holder}")]
        assert len(layers) == 2
        for path in layers:
            old = target.get_submodule(path)
            parts = separate(model, f"{path}.{fused}", QKV)
            heads = target.config.num_attention_heads
            target.set_submodule(path, Attention(parts, getattr(old, output), heads))

    return apply


def mlp(model: nn.Module, target: nn.Module) -> None:
    for path in [name for name, _ in target.named_modules() if name.endswith(".mlp")]:
        parts = separate(model, f"{path}.gate_up_proj", ("mlp.gate", "mlp.up"))
        target.set_submodule(path, GatedMlp(parts, target.get_submodule(path).down_proj))


NEOX = attention("attention", "query_key_value", "dense")
BLOOM = attention("self_attention", "query_key_value", "dense")
FALCON = attention("self_attention", "query_key_value", "dense")
MPT = attention("attn", "Wqkv", "out_proj")
PHI3 = attention("self_attn", "qkv_proj", "o_proj")
FOUR = {"num_attention_heads": 4}
# In transformers 5.23 Falcon's eager attention adds the bias for the distance twice.
ALIBI = {"alibi": True, "attn_implementation": "sdpa"}

CASES: tuple[tuple[str, dict[str, Any], Callable[[nn.Module, nn.Module], None], tuple[str, ...]], ...] = (
    ("GPTNeoXForCausalLM", FOUR, NEOX, QKV),
    ("GPTNeoXForCausalLM-no-bias", {}, NEOX, QKV),
    ("BloomForCausalLM", {"n_head": 4}, BLOOM, QKV),
    ("FalconForCausalLM", {"bias": True}, FALCON, QKV),
    ("FalconForCausalLM", ALIBI, FALCON, QKV),
    ("FalconForCausalLM-grouped", {"bias": True}, FALCON, QKV),
    ("FalconForCausalLM-grouped-one-norm", {"num_kv_heads": 4, **ALIBI}, FALCON, QKV),
    ("FalconForCausalLM-grouped", {"num_kv_heads": 1}, FALCON, QKV),
    ("FalconForCausalLM-by-head", ALIBI, FALCON, QKV),
    ("FalconForCausalLM-by-head-parallel", {}, FALCON, QKV),
    ("MptForCausalLM", {"n_heads": 4}, MPT, QKV),
    ("Phi3ForCausalLM", {}, PHI3, QKV),
    ("Phi3ForCausalLM", {"num_key_value_heads": 1}, PHI3, QKV),
    ("Phi3ForCausalLM-without-groups", {}, PHI3, QKV),
    ("Phi3ForCausalLM", {}, mlp, ("mlp.gate", "mlp.up")),
)


@pytest.mark.parametrize(("name", "config", "unfuse", "roles"), CASES)
def test_parts_are_the_separate_projections(
    name: str, config: dict[str, Any], unfuse: Callable[[nn.Module, nn.Module], None], roles: tuple[str, ...]
) -> None:
    model, batch = build(name, **config)
    model = sharpened(model.double())
    target = copy.deepcopy(model)
    unfuse(model, target)
    plain = model(**batch).logits.detach()
    assert_near(target(**batch).logits, plain)
    for role in roles:
        rule = Rule(role=role.replace(".", r"\."), adapter="lora", rank=2)
        beside = Rule(target=rf".*\.{NAMES[role]}", adapter="lora", rank=2)
        fused = [site for site in sites(model, REGISTRY) if site.role == role and site.parameter == "weight"]
        before = {site.path: model.get_parameter(site.name).detach().clone() for site in fused}
        one, two = (plan(Spec(name="x", rules=[each]), at, REGISTRY) for each, at in ((rule, model), (beside, target)))
        with operate(model, one, registry=REGISTRY) as op, operate(target, two, registry=REGISTRY) as other:
            generator = torch.Generator().manual_seed(5)
            pairs = list(zip(sorted(op.trainable().items()), sorted(other.trainable().items()), strict=True))
            assert len(pairs) == 2 * len(fused)
            for (_, left), (_, right) in pairs:
                assert left.shape == right.shape
                with torch.no_grad():
                    left.copy_(torch.randn(left.shape, generator=generator) * 0.5)
                    right.copy_(left)
            adapted = model(**batch).logits.detach()
            assert float((adapted - plain).abs().max()) > 1e-3  # far beyond what counts as the same
            assert_near(target(**batch).logits, adapted)
            op.merge()
            assert_near(model(**batch).logits, adapted)
            for site in fused:
                now, was = model.get_parameter(site.name), before[site.path]
                changed = (now != was).any(dim=1).nonzero().flatten().tolist()
                assert changed == list(site.slice.indices())
            op.unmerge()


@pytest.mark.parametrize("name", sorted({case[0] for case in CASES}))
def test_exchanged_parts_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above is worth: with the key called value it fails."""
    _, config, unfuse, _ = next(case for case in CASES if case[0] == name)
    model, batch = build(name, **config)
    kind = model.config.model_type
    found = REGISTRY.architectures[kind]
    roles = dict(found.value.roles)
    roles["attention.key"], roles["attention.value"] = roles["attention.value"], roles["attention.key"]
    wrong = replace(found, value=replace(found.value, roles=roles))
    monkeypatch.setitem(globals(), "REGISTRY", replace(REGISTRY, architectures={kind: wrong}))
    model = sharpened(model.double())
    target = copy.deepcopy(model)
    unfuse(model, target)
    assert float((target(**batch).logits - model(**batch).logits).detach().abs().max()) > 0.1


def sharpened(model: nn.Module) -> nn.Module:
    """With larger matrices, so that attention is far from uniform and a wrong part would show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and ".lm_head" not in name:
                parameter.mul_(6)
    return model


def assert_near(one: torch.Tensor, two: torch.Tensor) -> None:
    # Most models compute the softmax in float32 whatever the dtype of the model.
    assert torch.allclose(one, two, rtol=1e-5, atol=1e-5), float((one - two).abs().max())


# What config.json leaves out ----------------------------------------------------------------------------------------


def cut(kind: str, name: str, rows: int, settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The rows of every role of one weight of which only the header and config.json are known."""
    path, _, parameter = name.rpartition(".")
    entry = ParameterEntry(path, parameter, (rows, 8), "float32", "")
    found = REGISTRY.architecture(kind)
    assert found is not None
    made = sites_of(Inventory(kind, "", "headers", (entry,), {}, settings), found.value)
    return {site.role: site.slice.indices() if site.slice else () for site in made}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"num_attention_heads": 4}, (8, 9)),  # Falcon 7B: one key for all
        ({"num_attention_heads": 4, "multi_query": None, "num_kv_heads": None}, (8, 9)),
        ({"num_attention_heads": 2, "multi_query": False}, (2, 3, 8, 9)),
        ({"num_attention_heads": 2, "new_decoder_architecture": True}, (2, 3, 8, 9)),
        ({"num_attention_heads": 4, "num_kv_heads": 1, "new_decoder_architecture": True}, (8, 9)),
    ],
)
def test_falcon_without_its_defaults(settings: dict[str, Any], key: tuple[int, ...]) -> None:
    made = cut("falcon", "transformer.h.0.self_attention.query_key_value.weight", 12, settings)
    assert made["attention.key"] == key
    assert sorted(index for rows in made.values() for index in rows) == list(range(12))


def test_bloom_calls_its_heads_by_either_name() -> None:
    name = "transformer.h.0.self_attention.query_key_value.weight"
    expected = {"attention.query": (0, 1, 6, 7), "attention.key": (2, 3, 8, 9), "attention.value": (4, 5, 10, 11)}
    assert cut("bloom", name, 12, {"n_head": 2}) == expected
    assert cut("bloom", name, 12, {"num_attention_heads": 2}) == expected


def test_phi3_without_groups_need_not_say_so() -> None:
    made = cut("phi3", "model.layers.0.self_attn.qkv_proj.weight", 12, {"num_attention_heads": 2})
    assert made == {QKV[0]: (0, 1, 2, 3), QKV[1]: (4, 5, 6, 7), QKV[2]: (8, 9, 10, 11)}


def test_a_layout_that_the_configuration_does_not_tell_is_an_error() -> None:
    with pytest.raises(PlanError, match="does not say 'num_attention_heads'"):
        cut("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight", 12, {})


@pytest.mark.parametrize(("said", "place"), [({}, "pre"), ({"do_layer_norm_before": False}, "post")])
def test_opt_norms_stand_where_the_configuration_says(said: dict[str, Any], place: str) -> None:
    assert set(cut("opt", "model.decoder.layers.0.self_attn_layer_norm.weight", 8, said)) == {f"norm.attention.{place}"}
    assert set(cut("opt", "model.decoder.layers.0.final_layer_norm.weight", 8, said)) == {f"norm.mlp.{place}"}
    assert set(cut("opt", "model.decoder.final_layer_norm.weight", 8, said)) == {"norm.final"}
