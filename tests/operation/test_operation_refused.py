"""What cannot be operated is refused with the way out, and left as it was. What is never used is found by probing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import build
from operating import LORA, REGISTRY, move, operated, planned, unchanged
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from surgery import operate
from surgery.errors import PluginError, StateError
from surgery.testing import ToyModel

LINEAR = {"target": r".*", "adapter": "full"}


def two() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


def compiled() -> nn.Module:
    model = two()
    model.compile(backend="eager")
    return model


def int8() -> nn.Module:
    model = two()
    model[0].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    return model


def parametrized() -> nn.Module:
    model = two()
    torch.nn.utils.parametrizations.weight_norm(model[0])
    return model


def shared_storage() -> nn.Module:
    model = two()
    whole = torch.randn(6, 3)
    model[0].weight, model[1].weight = nn.Parameter(whole[:4][:3]), nn.Parameter(whole[2:5])
    return model


def shared_bias() -> nn.Module:
    model = two()
    whole = torch.randn(5)
    model[0].bias, model[1].bias = nn.Parameter(whole[:3]), nn.Parameter(whole[2:])
    return model


def own_child() -> nn.Module:
    model = two()
    model[0].surgery = nn.Linear(3, 3)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "torch.compile": (lambda: torch.compile(two(), backend="eager"), LINEAR, "a OptimizedModule cannot be operated"),
    "compile in place": (compiled, LINEAR, "already compiled"),
    "DataParallel": (lambda: nn.DataParallel(two()), LINEAR, "a DataParallel cannot be operated"),
    "DataParallel inside": (lambda: nn.Sequential(nn.DataParallel(two())), LINEAR, "a DataParallel cannot be operated"),
    "traced": (lambda: torch.jit.trace(two(), torch.ones(1, 3)), LINEAR, "a ScriptModule cannot be operated"),
    "meta": (lambda: two().to("meta"), LINEAR, "on the meta device"),
    "int8": (int8, LINEAR, "quantised"),
    "parametrized": (parametrized, {"target": "0", "adapter": "bias-only"}, "parametrized"),
    "max_norm": (lambda: nn.Sequential(nn.Embedding(4, 3, max_norm=1.0)), LINEAR, "rewrites its own weight"),
    "shared storage": (shared_storage, LINEAR, "shares memory with"),
    "shared storage of one target": (shared_storage, {"target": "0", **LORA}, "shares memory with"),
    "shared storage of a companion": (shared_bias, {"target": "0", "adapter": "lora", "rank": 1, "bias": True}, "shares memory with"),
    "a child called surgery": (own_child, {"target": "1", "adapter": "full"}, "a module of its own called 'surgery'"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_a_way_out_and_unchanged(name: str) -> None:
    make, rule, message = REFUSED[name]
    model = make()
    decided = planned(model, {**rule, "allow_oversized": True})
    before = {key: (id(value), value.requires_grad) for key, value in model.named_parameters()}
    classes = [type(module) for module in model.modules()]
    children = [list(module._modules.keys()) for module in model.modules()]
    with pytest.raises(StateError) as caught:
        operate(model, decided, registry=REGISTRY)
    assert message in caught.value.what
    assert caught.value.hint
    assert {key: (id(value), value.requires_grad) for key, value in model.named_parameters()} == before
    assert [type(module) for module in model.modules()] == classes
    assert [list(module._modules.keys()) for module in model.modules()] == children


def test_a_plan_for_another_model_is_refused() -> None:
    small, large = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(8, 8))
    decided = planned(small, {"target": "0", **LORA})
    for other, message in (
        (large, "made for shape [4, 4], the model has [8, 8]"),
        (nn.Sequential(nn.Linear(4, 4, dtype=torch.float64)), "another dtype"),
        (nn.Sequential(nn.Identity()), "does not have"),
    ):
        with unchanged(other), pytest.raises(StateError) as caught:
            operate(other, decided, registry=REGISTRY)
        assert message in caught.value.what


def test_a_plan_for_another_fused_weight_is_refused() -> None:
    decided = planned(build("GPT2Model")[0], {"role": r"attention\.key", **LORA})
    wide, _ = build("GPT2Model", n_embd=32)
    with unchanged(wide), pytest.raises(StateError, match=r"made for shape \[16, 48\], the model has \[32, 96\]"):
        operate(wide, decided, registry=REGISTRY)


def test_a_plan_that_contradicts_the_models_hosts_or_ties_is_refused() -> None:
    def tied(is_tied: bool) -> nn.Module:
        model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4, bias=False))
        if is_tied:
            model[1].weight = model[0].weight
        return model

    rule = {"target": "0", "tied": "share", **LORA}
    linear, conv1d = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(Conv1D(4, 4))
    for decided, model, what in (
        (planned(linear, rule), tied(True), "says host linear, untied; the model has host embedding, tied to 1.weight"),
        (planned(tied(True), rule), tied(False), "says host embedding, tied to 1.weight; the model has host embedding"),
        (planned(linear, rule), conv1d, "says host linear, untied; the model has host conv1d, untied"),
    ):
        with unchanged(model), pytest.raises(StateError, match=what) as caught:
            operate(model, decided, registry=REGISTRY)
        assert caught.value.where == "0.weight"
        assert caught.value.hint == "plan again for this model"


def test_an_operated_model_is_refused_until_undone() -> None:
    model = two()
    with operated(model, LINEAR):
        with unchanged(model), pytest.raises(StateError, match="already operated") as caught:
            operate(model, planned(model, LINEAR), registry=REGISTRY)
        assert len(caught.value.problems) == 1
        assert 'surgery.load_adapter(op, folder, name="b")' in caught.value.hint
    operate(model, planned(model, LINEAR), registry=REGISTRY).undo()


def test_a_spec_is_no_plan() -> None:
    model = two()
    decided: Any = planned(model, LINEAR).spec
    with unchanged(model), pytest.raises(StateError, match="this is a Spec, not a plan") as caught:
        operate(model, decided, registry=REGISTRY)
    assert caught.value.hint == "surgery.operate(model, surgery.plan(spec, model))"


def test_an_operation_shows_itself_in_a_line() -> None:
    model = two()
    with operated(model, LINEAR, name="a") as op:
        op.add(planned(model, LINEAR), "b")
        op.merge("b")
        assert repr(op) == f"<Operation on {type(model).__name__}: a, b (merged)>"
        with op.disabled("a"):
            assert ": a (disabled), b" in repr(op)
    assert repr(op) == f"<Operation on {type(model).__name__}: over>"


def test_one_module_under_two_paths_can_be_shared_and_not_cut() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    with unchanged(model), pytest.raises(StateError, match="are one module, not two tied ones"):
        operate(
            model, planned(model, {"target": "0", "tied": "untie", "adapter": "lora", "rank": 1}), registry=REGISTRY
        )
    inputs = torch.randn(2, 3)
    with unchanged(model), operated(model, {"target": "0", "tied": "share", "adapter": "lora", "rank": 1}) as op:
        adapted = model(inputs)
        op.merge()
        assert torch.allclose(model(inputs), adapted, atol=1e-6)


@pytest.mark.parametrize("name", ["", "a.b", "-a", "a b", "x" * 65, "é"])
def test_names_of_adapters(name: str) -> None:
    model = two()
    with unchanged(model), pytest.raises(StateError, match="cannot name an adapter"):
        operate(model, planned(model, LINEAR), name=name, registry=REGISTRY)


@pytest.mark.parametrize("name", ["forward", "weight", "training", "overrides", "put"])
def test_names_that_are_also_attributes_do_no_harm(name: str) -> None:
    model = two()
    with unchanged(model), operated(model, LINEAR, name=name) as op:
        op.merge()
        op.unmerge()
        model(torch.ones(1, 3))


def test_the_handle_says_what_is_not_possible_now() -> None:
    model = two()
    op = operated(model, LINEAR)
    with pytest.raises(StateError, match="nothing is merged"):
        op.unmerge()
    with pytest.raises(StateError, match="no adapter is called 'defualt'\n  hint: did you mean 'default'"):
        op.merge("defualt")
    op.merge()
    with pytest.raises(StateError, match="already merged"):
        op.merge()
    with pytest.raises(StateError, match="training it would not change"):
        op.trainable()
    with pytest.raises(StateError, match="no adapter is active"):
        op.probe(torch.ones(1, 3))
    op.unmerge()
    with pytest.raises(StateError, match="is not merged"):
        op.unmerge("default")
    with op.disabled():
        for act in (op.undo, op.merge, op.unmerge, lambda: op.remove("default"), op.finalize):
            with pytest.raises(StateError, match=r"disabled\(\)"):
                act()
    op.undo()
    op.undo()
    with pytest.raises(StateError, match="the operation is over"):
        op.merge()


def test_keep_must_be_known() -> None:
    model = two()
    with unchanged(model), pytest.raises(StateError, match="unknown keep 'rma'\n  hint: did you mean 'ram'"):
        operate(model, planned(model, LINEAR), keep="rma", registry=REGISTRY)
    with unchanged(model), pytest.raises(StateError, match="needs the folder of the base checkpoint"):
        operate(model, planned(model, LINEAR), keep="disk", registry=REGISTRY)


# Plugins that fail --------------------------------------------------------------------------------------------------


class _Broken(type(REGISTRY.adapter("full"))):  # type: ignore[misc]
    name = "broken"

    def __init__(self, fault: str) -> None:
        self.fault, self.left = fault, 2

    def build(self, site: Any, options: Any, pristine: Any, generator: Any) -> Any:
        self.left -= 1
        if self.left >= 0:
            return super().build(site, options, pristine, generator)
        made = super().build(site, options, pristine, generator)
        if self.fault == "raises":
            raise RuntimeError("no")
        if self.fault == "other":
            return nn.Linear(2, 2)
        if self.fault == "count":
            made.more = nn.Parameter(torch.ones(5))
        if self.fault == "random":
            torch.rand(1)
        if self.fault == "interrupt":
            raise KeyboardInterrupt
        return made


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("raises", PluginError, "build failed: RuntimeError: no"),
        ("other", PluginError, "must return an Adapter, not Linear"),
        ("count", PluginError, "the plan promised"),
        ("interrupt", KeyboardInterrupt, None),
    ],
)
def test_a_plugin_that_fails_half_way_leaves_the_model_as_it_was(
    fault: str, error: type[BaseException], message: str | None
) -> None:
    from dataclasses import replace

    from surgery import Rule, Spec, plan
    from surgery.registry import Provenance, Registered

    kind = Registered(_Broken(fault), Provenance("t", "tests", ""))
    registry = replace(REGISTRY, adapters={**REGISTRY.adapters, "broken": kind})
    model = two()
    decided = plan(Spec(name="x", rules=[Rule(target=".*", adapter="broken")]), model, registry)
    state = torch.random.get_rng_state()
    with unchanged(model), pytest.raises(error, match=message):
        operate(model, decided, registry=registry)
    assert torch.equal(state, torch.random.get_rng_state())
    with operate(model, planned(model, {"target": "0", "adapter": "full"}), registry=registry) as op:
        kind.value.left = 2
        with unchanged(model), pytest.raises(error, match=message):
            op.add(decided, "second")
        assert op.names == ("default",)
        move(op)
        op.merge()


# Silent sites -------------------------------------------------------------------------------------------------------


class Bypass(nn.Module):
    """Reads a weight past its module, where its own code does not show it."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.read, self.idle = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return applied(self.read, self.used(inputs))


def applied(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return F.linear(inputs, module.weight)


def test_probe_counts_and_names_every_silent_site() -> None:
    model = Bypass()
    with operated(model, {"target": ".*", "adapter": "lora", "rank": 1}) as op:
        with unchanged(model), pytest.raises(StateError) as caught:
            op.probe(torch.ones(1, 3))
        assert [problem.where for problem in caught.value.problems] == ["read.weight", "idle.weight"]
    with operated(
        model,
        {"target": "used", "adapter": "lora", "rank": 1},
        {"target": "read", "adapter": "full", "exclude": {"target": r"read\.bias"}},
    ) as op:
        assert op.probe(inputs=torch.ones(1, 3)) == {"used.weight": 1, "read.weight": 1}
        assert op.probe({"inputs": torch.ones(1, 3)}) == {"used.weight": 1, "read.weight": 1}


def test_full_tuning_reaches_a_weight_that_is_read_past_its_module() -> None:
    model, inputs = Bypass(), torch.ones(1, 3)
    plain = model(inputs)
    with operated(model, {"target": r"read\.weight", "adapter": "full"}):
        assert not torch.equal(model(inputs), plain)
    assert torch.equal(model(inputs), plain)


def test_probing_disturbs_nothing_even_when_the_model_raises() -> None:
    model = ToyModel()
    model.body.layers[0].train()
    model.body.layers[1].eval()
    with operated(model, {"role": r"mlp\..*", **LORA}) as op:
        state = torch.random.get_rng_state()
        with unchanged(model):
            op.probe(ToyModel.batch())
        with unchanged(model), pytest.raises(IndexError):
            op.probe(torch.full((1, 2), 10_000))
        assert torch.equal(state, torch.random.get_rng_state())
        assert not any(owner.state.calls for slot in op.body.slots.values() for owner in slot.owners)
