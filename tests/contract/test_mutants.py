"""The checks can fail: each way of being wrong, put in on purpose, is caught by `check_adapter` or by a named property."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from surgery import Rule, Spec, load_registry, operate, plan
from surgery.errors import DriftError, SurgeryError
from surgery.operation import attach, bits, body, change, host, merge, slot
from surgery.operation.bits import round_once, same_bits
from surgery.testing import ToyModel, assert_same_state, check_adapter, model_state, toy_registry

REGISTRY = load_registry()
Patch = pytest.MonkeyPatch


def check_lora() -> None:
    check_adapter(REGISTRY.adapter("lora"), {"rank": 2}, dtypes=(torch.bfloat16,))


def check_full() -> None:
    check_adapter(REGISTRY.adapter("full"), dtypes=(torch.bfloat16,))


def toy(dtype: torch.dtype = torch.float32, **rule: Any) -> tuple[Any, ToyModel]:
    model = ToyModel(layers=1, dtype=dtype)
    registry = toy_registry(*(found.value for found in REGISTRY.adapters.values()))
    chosen = Rule(**{"role": r"mlp\..*", "adapter": "lora", "rank": 2, **rule})
    op = operate(model, plan(Spec(name="m", rules=[chosen]), model, registry), registry=registry)
    return op, model


# The named properties -----------------------------------------------------------------------------------------------


def zeros_keep_their_sign() -> None:
    op, model = toy(torch.bfloat16)
    weight, decided = model.body.layers[0].down._parameters["weight"], op.plan()
    op.undo()
    weight.data.fill_(-0.0)
    before = model_state(model)
    op = operate(model, decided, registry=op.registry)
    op.merge()
    assert same_bits(weight, torch.full_like(weight, -0.0)).all(), "-0 became +0"
    op.undo()
    assert_same_state(before, model_state(model))


def rounding_happens_once() -> None:
    # 1 + 2^-8 + 2^-40 lies above the middle between two bfloat16 numbers; float32 in between loses the last bit.
    value = torch.tensor([1 + 2.0**-8 + 2.0**-40, -(1 + 2.0**-8 + 2.0**-40)], dtype=torch.float64)
    wanted = torch.tensor([1 + 2.0**-7, -(1 + 2.0**-7)], dtype=torch.bfloat16)
    model = nn.Sequential(nn.Linear(2, 1, bias=False, dtype=torch.bfloat16))
    registry = toy_registry(REGISTRY.adapter("lora"))
    model[0].weight.data.copy_(torch.tensor([[1.0, -1.0]]))
    rule = Rule(target="0", adapter="lora", rank=1, alpha=1, allow_oversized=True)
    with operate(model, plan(Spec(name="r", rules=[rule]), model, registry), registry=registry) as op:
        with torch.no_grad():
            for name, parameter in op.trainable().items():
                small = torch.tensor([[2.0**-8 + 2.0**-31, -(2.0**-8 + 2.0**-31)]])
                parameter.copy_(small if name.endswith(".A") else torch.ones(1, 1))
        op.merge()
        assert same_bits(model[0].weight[0], wanted).all(), "rounded twice"
    assert value.dtype == torch.float64


def drift_is_noticed() -> None:
    op, model = toy()
    model.body.layers[0].down._parameters["weight"].data.view(torch.int32)[0, 0] ^= 1
    with pytest.raises(DriftError):
        op.merge()


def the_live_bits_do_not_depend_on_history() -> None:
    op, model = toy(torch.bfloat16)
    op.add(op.plan("default"), "b")
    op.add(op.plan("default"), "c")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(op.trainable().items()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    seen = []
    for order in (("b", "c", "default"), ("default", "c", "b"), ("c", "default", "b")):
        for name in order:
            op.merge(name)
        seen.append({key: bits for key, bits in model_state(model).bits.items() if "surgery" not in key})
        op.unmerge()
    assert seen[0] == seen[1] == seen[2], "the order of merging shows in the bits"
    op.undo()


def the_way_back_is_bit_for_bit() -> None:
    op, model = toy(torch.bfloat16)
    before = model_state(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(op.trainable().items()):
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    held = {key: bits for key, bits in before.bits.items() if "surgery" not in key}
    op.merge()
    op.unmerge()
    assert {key: model_state(model).bits[key] for key in held} == held, "unmerge leaves other bits"
    op.undo()


def a_refused_merge_changes_nothing() -> None:
    op, model = toy()
    with torch.no_grad():
        for parameter in op.trainable().values():
            parameter.fill_(0.5)
        list(op.trainable().values())[-1].fill_(float("nan"))
    before = model_state(model)
    with pytest.raises(SurgeryError):
        op.merge()
    assert_same_state(before, model_state(model), "by a refused merge")


# The mutants --------------------------------------------------------------------------------------------------------


def subtract(patch: Patch) -> None:
    """Unmerging takes the update off again instead of pointing back."""
    real = slot.Slot.pristine

    def pristine(self: slot.Slot) -> torch.Tensor:
        kept = real(self)
        if self.original is None:
            return kept
        with torch.no_grad():
            names = {member.adapter_name for member in self.members}
            delta = merge.fold_chain(self.owners[0].parameter, kept.double(), self.chain(names)) - kept.double()
        return (self.live.detach() - delta.to(self.live.dtype)).to(kept.dtype)

    patch.setattr(slot.Slot, "pristine", pristine)
    patch.setattr(slot.Slot, "check", lambda self: None)


def order_of_merging(patch: Patch) -> None:
    """The next merge starts from what is live."""
    real = merge.merged_value

    def value(part: slot.Slot, names: Any) -> Any:
        new = [member for member in part.members if member.adapter_name in names]
        if part.original is None or len(new) < 2:
            return real(part, names)
        merged = next(iter(part.members)).adapter_name
        live = part.live.detach()
        base = live.double()
        last = [(member.adapter, member.site) for member in new if member.adapter_name not in seen_merged[-1]] or []
        with torch.no_grad():
            folded = merge.fold_chain(part.owners[0].parameter, base, last)
        assert merged
        return round_once(folded, live.dtype), real(part, names)[1]

    seen_merged: list[frozenset[str]] = [frozenset()]
    set_merged = body.Body.set_merged

    def remember(self: body.Body, target: frozenset[str]) -> Any:
        seen_merged.append(self.merged)
        return set_merged(self, target)

    patch.setattr(body.Body, "set_merged", remember)
    patch.setattr(body, "merged_value", value)


def round_twice(patch: Patch) -> None:
    real = change.merge_block

    def block(weight: torch.Tensor, *arguments: Any) -> torch.Tensor:
        *others, out = arguments
        single = real(weight.to(torch.float32), *others, None).to(weight.dtype)
        return single if out is None else out.copy_(single)

    patch.setattr(change, "merge_block", block)
    patch.setattr(bits, "round_once", lambda value, dtype: value.to(torch.float32).to(dtype))


def forget_negative_zero(patch: Patch) -> None:
    real = merge.merged_value

    def value(*arguments: Any) -> Any:
        tensor, record = real(*arguments)
        return tensor + 0.0, record

    patch.setattr(body, "merged_value", value)


def skip_the_drift_check(patch: Patch) -> None:
    patch.setattr(slot.Slot, "check", lambda self: None)


def seed_by_position(patch: Patch) -> None:
    real, drawn = attach.build_adapters, [0]

    def seed(number: int, key: str) -> int:
        drawn[0] += 1
        return drawn[0]

    def build(*arguments: Any) -> Any:
        drawn[0] = 0
        return real(*arguments)

    from surgery.operation import add

    patch.setattr(attach, "site_seed", seed)
    patch.setattr(add, "build_adapters", build)


def seed_by_global_state(patch: Patch) -> None:
    patch.setattr(attach, "site_seed", lambda number, key: int(torch.randint(0, 2**31, ())))


def merge_one_after_the_other(patch: Patch) -> None:
    """Each slot is written as soon as it is computed: a refusal in the last leaves the first merged."""
    real = merge.merged_value

    def value(part: slot.Slot, names: Any) -> Any:
        tensor, record = real(part, names)
        part.live.data = tensor
        return tensor, record

    patch.setattr(body, "merged_value", value)


def leave_an_adapter_out(patch: Patch) -> None:
    """The host forgets to apply what it has."""
    patch.setattr(host.HostState, "apply_to", lambda self, inputs, output: output)


def act_on_the_output_too_late(patch: Patch) -> None:
    """A live output edit acts after what was merged, whatever their order."""
    patch.setattr(body.Body, "_overtaken", lambda self, path, merged: set())


def keep_the_class(patch: Patch) -> None:
    from surgery.operation import ledger

    real = ledger.Ledger.act

    def act(self: Any, do: Callable[[], None], inverse: Callable[[], None]) -> None:
        real(self, do, (lambda: None) if "__class__" in inverse.__code__.co_consts else inverse)

    patch.setattr(ledger.Ledger, "act", act)


MUTANTS: dict[str, tuple[Callable[[Patch], None], list[Callable[[], None]]]] = {
    "subtract": (subtract, [check_lora, the_way_back_is_bit_for_bit]),
    "order of merging": (order_of_merging, [the_live_bits_do_not_depend_on_history]),
    "round twice": (round_twice, [rounding_happens_once]),
    "forget negative zero": (forget_negative_zero, [zeros_keep_their_sign]),
    "skip the drift check": (skip_the_drift_check, [drift_is_noticed]),
    "seed by position": (seed_by_position, [check_lora]),
    "seed by global state": (seed_by_global_state, [check_lora]),
    "merge one after the other": (merge_one_after_the_other, [a_refused_merge_changes_nothing]),
    "leave an adapter out": (leave_an_adapter_out, [check_lora]),
    "act on the output too late": (act_on_the_output_too_late, [check_lora]),
    "keep the class": (keep_the_class, [check_lora, check_full]),
}
KILLERS = sorted({killer for _, killers in MUTANTS.values() for killer in killers}, key=lambda killer: killer.__name__)


@pytest.mark.parametrize("killer", KILLERS, ids=lambda killer: killer.__name__)
def test_without_a_mutant_every_check_passes(killer: Callable[[], None]) -> None:
    killer()


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_mutant_is_caught(name: str, monkeypatch: Patch) -> None:
    mutate, killers = MUTANTS[name]
    mutate(monkeypatch)
    for killer in killers:
        caught = None
        try:
            killer()
        except (AssertionError, SurgeryError, pytest.fail.Exception, KeyError) as error:
            caught = error
        assert caught is not None, f"{name} survives {killer.__name__}"
