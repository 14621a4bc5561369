"""LoRA on the experts of a mixture: one tensor holds all of them, gate and up together, and only what is asked moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from operating import LORA, REGISTRY, base_bits, logits, operated, planned, unchanged
from safetensors.torch import load_file
from torch import nn

from surgery import sites
from surgery.errors import PlanError
from surgery.testing import assert_same_state, model_state

GATE = {"role": r"moe\.experts\.gate", **LORA}
MODELS = ("MixtralForCausalLM", "OlmoeForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM",
          "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "JambaForCausalLM")  # fmt: skip
SHARING = pytest.mark.parametrize("experts", ["separate", "shared"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
ROUNDINGS = {torch.float32: 8, torch.bfloat16: 1}
"""How many roundings of the dtype a folded weight may be from the merged one: float32 sums against float64 sums."""


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if hasattr(module, "gate_up_proj")}


def gate_and_up(model: nn.Module, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """What the modelling code makes of the fused weight; gpt-oss stores it transposed and in turns."""
    fused = module.gate_up_proj.detach().clone()
    return (fused[..., ::2], fused[..., 1::2]) if module.is_transposed else fused.chunk(2, dim=1)


@contextmanager
def choices(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Record which experts each token is sent to, layer by layer."""
    chosen: list[torch.Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: chosen.append(args[1].clone()))
        for module in experts_of(model).values()
    ]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


@SHARING
@DTYPES
@pytest.mark.parametrize("name", [*MODELS, "GptOssForCausalLM"])
def test_lora_on_gates_alone(name: str, dtype: torch.dtype, experts: str) -> None:
    model, batch = build(name)
    model = model.to(dtype)
    hosts = experts_of(model)
    plain, before = logits(model, batch), model_state(model)
    halves = {path: gate_and_up(model, module) for path, module in hosts.items()}
    with operated(model, {**GATE, "experts": experts}) as op, choices(model) as chosen:
        live = logits(model, batch)
        before_merge = [*chosen]
        assert not torch.equal(live, plain)
        folded = {path: gate_and_up(model, module) for path, module in hosts.items()}
        op.merge()
        bits = base_bits(model)
        moved = {key for key in bits if bits[key] != before.bits[key]}
        assert moved == {f"{path}.gate_up_proj" for path in hosts}
        for path, module in hosts.items():
            (gate, up), merged = halves[path], gate_and_up(model, module)
            assert torch.equal(up, folded[path][1])
            assert torch.equal(up, merged[1])
            for number in range(4):
                assert not torch.equal(gate[number], merged[0][number]), f"expert {number} was left out"
            near = ROUNDINGS[dtype] * torch.finfo(dtype).eps * merged[0].abs().max()
            assert (folded[path][0] - merged[0]).abs().max() <= near
        bound = {torch.float32: 2e-5, torch.bfloat16: 0.05}[dtype]
        chosen.clear()
        now = logits(model, batch)
        # A rounding may turn a close choice of experts, which is no rounding any more.
        alike = torch.stack([(a == b).all(-1) for a, b in zip(before_merge, chosen, strict=True)]).all(0)
        assert alike.float().mean() > 0.9
        apart = (now - live).abs().amax(-1).flatten()[alike]
        assert apart.max() <= bound * live.abs().max()
        op.unmerge()
        assert torch.equal(logits(model, batch), live)
    assert_same_state(before, model_state(model), "after LoRA on gates")


def test_rules_reach_the_router_only_by_its_own_role() -> None:
    for name in (*MODELS, "GptOssForCausalLM"):
        model, batch = build(name)
        for role in (r"mlp\..*|moe\.experts\..*|moe\.shared.*", r"moe\.router"):
            roles = {edit.site.role for edit in planned(model, {"role": role, "allow_oversized": True, **LORA}).edits}
            assert ("moe.router" in roles) == (role == r"moe\.router"), name
        with unchanged(model), operated(model, {"role": r"moe\.router", **LORA}) as op:
            live = logits(model, batch)
            op.merge()
            assert (logits(model, batch) - live).abs().max() <= 2e-5 * live.abs().max()


@pytest.mark.parametrize("name", [*MODELS, "GptOssForCausalLM"])
def test_a_wide_rule_spares_the_router(name: str) -> None:
    model, _ = build(name)
    wide = {"allow_oversized": True, "tied": "share"}

    def routers(**rule: Any) -> int:
        return sum(edit.site.role == "moe.router" for edit in planned(model, {**wide, **rule}).edits)

    path = next(site.path for site in sites(model, REGISTRY) if site.role == "moe.router")
    last = path.rpartition(".")[2]
    for adapter in (LORA, {"adapter": "ia3"}):
        for patterns in ({"role": ".*"}, {"role": r"moe\..*"}, {"target": ".*"}, {"target": r".*\.layers\..*"},
                         {"role": r"moe\.experts\..*"}, {"role": "(mlp|moe)\\..*", "target": ".*"}):  # fmt: skip
            assert routers(**patterns, **adapter) == 0, patterns
        for patterns in ({"role": r"moe\.router"}, {"role": r"moe\.(experts.*|router)"}, {"target": rf".*\.{last}"}):
            assert routers(**patterns, **adapter) > 0, patterns
    every = [site for site in sites(model, REGISTRY) if site.role == "moe.router"]
    assert routers(role=".*", adapter="full") == len(every), "every number is every number"
    with pytest.raises(PlanError, match="nothing but routers") as caught:
        planned(model, {"role": r"moe\.r.*r", **LORA})
    assert r"role: moe\.router" in str(caught.value)


def test_tensors_in_files_say_which_parameter_they_belong_to(tmp_path: Path) -> None:
    for name, rest in (("MixtralForCausalLM", "mlp.experts"), ("GptOssForCausalLM", "mlp.experts")):
        model, _ = build(name)
        rules = ({"role": r"moe\.experts\.(gate|down)", "target": r".*_proj", **LORA},
                 {"role": r"moe\.experts\.up", "target": r".*_proj", "adapter": "ia3", "experts": "shared"})  # fmt: skip
        with operated(model, *rules) as op:
            saved = op.save(tmp_path / name)
            names = set(op.trainable())
        sizes = {key: tuple(tensor.shape) for key, tensor in load_file(saved / "adapter.safetensors").items()}
        wide = model.config.intermediate_size
        base = {key: value for key, value in sizes.items() if ".layers.0." in key}
        assert base == {
            f"model.layers.0.{rest}.gate_up_proj:moe.experts.gate/A": (4, 2, 16),
            f"model.layers.0.{rest}.gate_up_proj:moe.experts.gate/B": (4, wide, 2),
            f"model.layers.0.{rest}.gate_up_proj:moe.experts.up/scale": (wide,),
            f"model.layers.0.{rest}.down_proj/A": (4, 2, wide),
            f"model.layers.0.{rest}.down_proj/B": (4, 16, 2),
        }
        parameters = dict(model.named_parameters())
        assert all(key.partition("/")[0].partition(":")[0] in parameters for key in sizes)
        assert f"model.layers.0.{rest}.surgery.default.gate_up_proj_moe_experts_up.scale" in names


# A copy that keeps each expert's maps apart ---------------------------------------------------------------------------


class Apart(nn.Module):
    """Experts as separate linear modules; `act` is the modelling code's activation and product."""

    def __init__(self, model: nn.Module, module: Any) -> None:
        super().__init__()
        gates, ups = gate_and_up(model, module)
        downs = module.down_proj.detach()
        turned = module.is_transposed
        biases = [getattr(module, f"{name}_proj_bias", None) for name in ("gate_up", "down")]
        self.act_fn = getattr(module, "act_fn", None)
        for name, weights, bias in (
            ("gate", gates, None if biases[0] is None else biases[0][:, ::2]),
            ("up", ups, None if biases[0] is None else biases[0][:, 1::2]),
            ("down", downs, biases[1]),
        ):
            maps = [_linear(weight.mT if turned else weight, bias, n) for n, weight in enumerate(weights)]
            setattr(self, name, nn.ModuleList(maps))

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(hidden)
        for number, (to_gate, to_up, to_down) in enumerate(zip(self.gate, self.up, self.down, strict=True)):
            token, rank = torch.where(index == number)
            gate, up = to_gate(hidden[token]), to_up(hidden[token])
            if self.act_fn is None:  # gpt-oss
                gate = gate.clamp(max=7.0)
                product = (up.clamp(-7.0, 7.0) + 1) * gate * torch.sigmoid(gate * 1.702)
            else:
                product = self.act_fn(gate) * up
            out = out.index_add(0, token, to_down(product) * weights[token, rank, None])
        return out


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, number: int) -> nn.Linear:
    made = nn.Linear(*reversed(weight.shape), bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias[number])
    return made


def apart(model: nn.Module) -> None:
    for path, module in experts_of(model).items():
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, Apart(model, module))


@SHARING
@pytest.mark.parametrize("part", ["gate", "up", "down"])
@pytest.mark.parametrize("name", [*MODELS, "GptOssForCausalLM"])
def test_lora_on_experts_is_lora_on_each_expert_apart(name: str, part: str, experts: str) -> None:
    fused, batch = build(name)
    other, _ = build(name)
    fused, other = fused.double(), other.double()
    apart(other)
    plain = logits(fused, batch)
    assert (logits(other, batch) - plain).abs().max() < 1e-10, "the copy computes what the model does"
    rule = {"role": rf"moe\.experts\.{part}", "target": r".*_proj", **LORA}
    with operated(fused, {**rule, "experts": experts}) as op:
        separate = operated(other, {"target": rf".*\.experts\.{part}\.\d+", **LORA})
        pairs = {key.split(".surgery.")[0]: {} for key in op.trainable()}
        for key, tensor in op.trainable().items():
            pairs[key.split(".surgery.")[0]][key.rpartition(".")[2]] = tensor
        with torch.no_grad():
            for key, tensor in separate.trainable().items():
                path, _, number = key.split(".surgery.")[0].rpartition(".")
                source = pairs[path.rpartition(".")[0]][key.rpartition(".")[2]]
                tensor.copy_(source if experts == "shared" else source[int(number)])
        live = logits(fused, batch)
        assert (live - plain).abs().max() > 1e-4
        assert (logits(other, batch) - live).abs().max() < 1e-10
        op.merge()
        assert (logits(fused, batch) - live).abs().max() < 1e-10
        separate.undo()


def test_gradients_reach_every_expert_that_a_token_chose() -> None:
    model, batch = build("MixtralForCausalLM")
    with operated(model, GATE) as op:
        model(**batch)[0].square().sum().backward()
        for key, tensor in op.trainable().items():
            assert tensor.grad is not None
            assert bool((tensor.grad.flatten(1).norm(dim=1) > 0).all()), key


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM"])
def test_default_kernels_compute_the_same(name: str) -> None:
    """transformers reads the experts' weights in one grouped product unless told otherwise."""
    wide = {"hidden_size": 16, "intermediate_size": 16}
    model, batch = build(name, **wide)
    with operated(model, GATE):
        live = logits(model, batch)
        assert model.config._experts_implementation == "eager"
        model.set_experts_implementation("grouped_mm")
        assert (logits(model, batch) - live).abs().max() <= 2e-5 * live.abs().max()
