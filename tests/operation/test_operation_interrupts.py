"""Ctrl-C at every step of adding, merging, unmerging, removing and disabling: the model is as it was, and usable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
from operating import LORA, REGISTRY, move, operated, planned

from surgery import Operation, operate
from surgery.operation import add, attach, body, fold, host, ledger, merge, slot
from surgery.testing import ToyModel, assert_same_state, model_state

FULL = {"target": ".*", "adapter": "full", "tied": "share"}
MIX = (
    {"role": r"attention\..*", **LORA},
    {"target": "head", "adapter": "lora", "rank": 1, "tied": "untie"},
    {"role": r"norm\..*", "adapter": "full"},
)
HELPERS: tuple[tuple[Any, str], ...] = (
    (attach, "_build"), (attach, "canonical_view"), (add, "attach_state"), (add, "_register"), (add, "checksums"),
    (attach, "operated_class"), (host.HostState, "__init__"), (body, "merged_value"), (body, "checksums"), (body, "_point"),
    (body, "slot_key"), (merge, "fold_chain"), (merge, "rounded"), (merge, "_record"), (fold, "canonical_view"),
    (host.HostState, "put"), (host.HostState, "take"), (slot.Slot, "chain"), (slot.Slot, "check"),
    (slot.Slot, "pristine"), (body.Body, "refresh"), (body.Body, "put"), (body.Body, "_refresh_activations"),
    (body.Body, "remember"), (ledger.Ledger, "act"),
)  # fmt: skip


@contextmanager
def interrupted(owner: Any, name: str, at: int, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt before or after the n-th call; later calls, by the inverses, work."""
    real, calls = getattr(owner, name), []

    def wrapper(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == at and not after:
            raise KeyboardInterrupt
        result = real(*arguments, **options)
        if len(calls) == at:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wrapper)
        yield calls


def prepared() -> Operation:
    model = ToyModel(layers=1)
    op = operate(model, planned(model, *MIX), name="a", registry=REGISTRY)
    op.add(planned(model, {"role": r"(attention|mlp)\..*", **LORA}, {"role": r"norm\..*", "adapter": "bias-only"}), "b")
    move(op)
    return op


def half_merged() -> Operation:
    op = prepared()
    op.merge("b")
    return op


def merged() -> Operation:
    op = prepared()
    op.merge()
    return op


def disabled(op: Operation) -> None:
    with op.disabled():
        pass


ACTS: dict[str, tuple[Callable[[], Operation], Callable[[Operation], Any]]] = {
    "add": (
        prepared,
        lambda op: op.add(
            planned(
                op.model,
                {"role": r"mlp\..*", **LORA},
                {"role": ".*", "adapter": "full", "exclude": {"role": r"embedding.*|head.*"}},
            ),
            "c",
        ),
    ),
    "merge": (prepared, lambda op: op.merge()),
    "merge-more": (half_merged, lambda op: op.merge("a")),
    "unmerge": (merged, lambda op: op.unmerge()),
    "unmerge-one": (merged, lambda op: op.unmerge("a")),
    "remove": (prepared, lambda op: op.remove("a")),
    "disable": (half_merged, disabled),
}


@pytest.mark.parametrize("name", sorted(ACTS))
def test_an_interrupt_at_any_step_is_taken_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, act = ACTS[name]
    op = prepare()
    names, is_merged, before = op.names, op.merged, model_state(op.model)
    steps = 0
    for owner, helper in HELPERS:
        for after in (False, True):
            at = 1
            while True:
                with interrupted(owner, helper, at, monkeypatch, after=after) as calls:
                    try:
                        act(op)
                    except KeyboardInterrupt:
                        where = f"{name}: call {at} of {helper}, {'after' if after else 'before'}"
                    else:
                        where = ""
                if not where:
                    assert len(calls) < at
                    op = prepare()  # it went through
                    before = model_state(op.model)
                    break
                steps += 1
                assert (op.names, op.merged) == (names, is_merged), where
                assert_same_state(before, model_state(op.model), where)
                # The first few calls, and then ever fewer: hosts are many and alike.
                at += 1 if at < 4 else at // 2
    assert steps > 10
    act(op)  # and it still works
    op.undo()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupt_while_operating_leaves_a_plain_model(after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ToyModel(layers=1)
    decided = planned(model, *MIX)
    before = model_state(model)
    for owner, helper in HELPERS:
        at = 1
        while True:
            with interrupted(owner, helper, at, monkeypatch, after=after):
                try:
                    op = operate(model, decided, registry=REGISTRY)
                except KeyboardInterrupt:
                    op = None
            if op is not None:
                op.undo()
                break
            assert_same_state(before, model_state(model), f"call {at} of {helper}")
            at += 1 if at < 4 else at // 2


@pytest.mark.parametrize("act", ["undo", "finalize"])
@pytest.mark.parametrize("prepare", [prepared, half_merged, merged], ids=lambda make: make.__name__)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupted_way_out_is_finished_or_can_be_taken_again(
    act: str, prepare: Callable[[], Operation], after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {path: type(module) for path, module in ToyModel(layers=1).named_modules()}
    helpers = (*HELPERS, (add, "_detach"), (ledger.Ledger, "undo"))
    for owner, helper in helpers:
        at = 1
        while True:
            op = prepare()
            expected = prepare()
            with interrupted(owner, helper, at, monkeypatch, after=after):
                try:
                    getattr(op, act)()
                except KeyboardInterrupt:
                    hit = True
                else:
                    hit = False
            if not op._is_over:
                getattr(op, act)()
            getattr(expected, act)()
            assert {path: type(module) for path, module in op.model.named_modules()} == plain, f"call {at} of {helper}"
            assert model_state(op.model).bits == model_state(expected.model).bits, f"call {at} of {helper}"
            assert all(parameter.requires_grad for parameter in op.model.parameters())
            if not hit:
                break
            at += 1 if at < 3 else at


def test_after_an_interrupted_merge_the_next_one_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model_state(merged().model).bits
    op = prepared()
    with interrupted(body, "_point", 3, monkeypatch, after=True), pytest.raises(KeyboardInterrupt):
        op.merge()
    op.merge()
    assert model_state(op.model).bits == expected
    op.undo()


def test_the_ledger_takes_back_what_was_recorded_before_it_was_done() -> None:
    done: list[str] = []
    book = ledger.Ledger()

    def fail() -> None:
        done.append("half")
        raise KeyboardInterrupt

    book.act(lambda: done.append("first"), lambda: done.append("undo first"))

    def both() -> None:
        with book.all_or_nothing():
            book.act(lambda: done.append("second"), lambda: done.append("undo second"))
            book.act(fail, lambda: done.append("undo half"))

    with pytest.raises(KeyboardInterrupt):
        both()
    assert done == ["first", "second", "half", "undo half", "undo second"]
    assert len(book) == 1
    book.undo()
    assert done[-1] == "undo first"


def test_with_blocks_undo_when_interrupted() -> None:
    model = ToyModel()
    before = model_state(model)

    def stop() -> None:
        with operated(model, FULL) as op:
            op.merge()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert_same_state(before, model_state(model))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("prepare", [prepared, half_merged], ids=["live", "half-merged"])
def test_an_interrupted_disabled_block_brings_everything_back(
    prepare: Callable[[], Operation], at: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whichever refresh: on entering, and on leaving."""
    op = prepare()
    state, output = model_state(op.model), op.model(ToyModel.batch())
    with interrupted(body.Body, "refresh", at, monkeypatch, after=after) as calls:
        try:
            with op.disabled():
                pass
        except KeyboardInterrupt:
            pass
        else:
            assert len(calls) < at
    assert_same_state(state, model_state(op.model), "by an interrupted disabled()")
    assert (op.model(ToyModel.batch()) == output).all()
    with op.disabled():
        assert not (op.model(ToyModel.batch()) == output).all()
    op.undo()


def test_ctrl_c_when_operate_is_about_to_return(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("surgery.operation.operate")  # the package has a function of this name
    model = ToyModel(layers=1)
    before = model_state(model)
    real = module.add_plan

    def add_and_stop(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "add_plan", add_and_stop)
    with pytest.raises(KeyboardInterrupt):
        operate(model, planned(model, *MIX), registry=REGISTRY)
    assert_same_state(before, model_state(model), "by an operate that nobody got the handle of")
