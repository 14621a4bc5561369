"""A state machine over everything an operation can do: after undo not a bit, key, flag or identity has changed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from surgery import AdapterType, Rule, Spec, SurgeryError, load_registry, operate, plan
from surgery.errors import DriftError, PluginError, StateError
from surgery.operation import Operation
from surgery.operation.bits import same_bits
from surgery.planning.live import STATE_CHILD
from surgery.registry import Provenance, Registered, Registry
from surgery.testing import TOY, ToyModel, assert_same_state, model_state
from surgery.testing.strategies import DTYPES, fill

_INSTALLED = load_registry()
_NAMES = ("a", "b", "c")
_TARGETS = (r".*", r".*\.(output|up|down)", r".*\.fused", r"body\.embedding|head", r".*\.norm")


class _Breaking(type(_INSTALLED.adapter("full"))):  # type: ignore[misc]
    """A plugin that raises when it has built half of its adapters."""

    name = "breaking"

    def __init__(self) -> None:
        self.left = 2

    def build(self, *args: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("half way")
        return super().build(*args)


def _registry(*extra: AdapterType[Any]) -> Registry:
    here = Provenance("machine", "tests", "")
    return Registry(
        adapters={**_INSTALLED.adapters, **{kind.name: Registered(kind, here) for kind in extra}},
        architectures={"surgery-toy": Registered(TOY, here)},
        models={},
        datasets={},
        tasks={},
    )


class Machine(RuleBasedStateMachine):
    @initialize(data=st.data(), dtype=st.sampled_from(DTYPES), is_special=st.booleans())
    def begin(self, data: st.DataObject, dtype: torch.dtype, is_special: bool) -> None:
        self.model = ToyModel(layers=1, dtype=dtype).eval()
        if is_special:
            fill(self.model, data.draw)
        self.before = model_state(self.model)
        self.pristine = self.model(ToyModel.batch())
        self.base = dict(self.before.bits)
        self.op: Operation | None = None
        self.folder = Path(tempfile.mkdtemp())
        self.saved: dict[str, tuple[Path, Any]] = {}
        self.live: dict[frozenset[str], dict[str, bytes]] = {}

    def teardown(self) -> None:
        if getattr(self, "op", None) is not None:
            self.undo()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _base_bits(self) -> dict[str, bytes]:
        return {key: bits for key, bits in model_state(self.model).bits.items() if STATE_CHILD not in key.split(".")}

    def _plan(self, adapter: str, target: str, registry: Registry) -> Any:
        kind = registry.adapter(adapter)
        options = kind.defaults()
        made = Rule(target=target, adapter=adapter, tied="share", allow_oversized=True, **options)
        return plan(Spec(name="machine", rules=(made,)), self.model, registry)

    @rule(
        adapter=st.sampled_from(sorted(_INSTALLED.adapters)),
        where=st.sampled_from(_TARGETS),
        name=st.sampled_from(_NAMES),
    )
    def add(self, adapter: str, where: str, name: str) -> None:
        registry = _registry()
        try:
            decided = self._plan(adapter, where, registry)
        except SurgeryError:
            return  # this adapter claims nothing there
        if self.op is None:
            self.op = operate(self.model, decided, name=name, registry=registry)
            return
        state = model_state(self.model)
        try:
            self.op.add(decided, name)
        except StateError:
            assert_same_state(state, model_state(self.model), "by a refused add")

    @rule(where=st.sampled_from(_TARGETS))
    def fail_in_the_middle(self, where: str) -> None:
        registry = _registry(_Breaking())
        state = model_state(self.model)
        decided = self._plan("breaking", where, registry)
        if len(decided.edits) <= 2:
            return
        try:
            if self.op is None:
                operate(self.model, decided, registry=registry)
            else:
                self.op._registry = registry
                self.op.add(decided, "broken")
        except (PluginError, StateError):
            assert_same_state(state, model_state(self.model), "by a plugin that failed half way")
        else:
            raise AssertionError("the failure was swallowed")

    @precondition(lambda self: self.op is not None)
    @rule(rate=st.sampled_from([1e-3, 1.0]))
    def train_a_step(self, rate: float) -> None:
        """One step of gradient descent; special values in the base make gradients that are not finite, which count 0."""
        assert self.op is not None
        names = [name for name in self.op.names if name not in self.op.merged]
        if not names:
            return
        parameters = [parameter for _, parameter in sorted(self.op.trainable(*names).items())]
        loss = self.model(ToyModel.batch()).float().nan_to_num(0.0, 0.0, 0.0).clamp(-1e3, 1e3).square().mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    moved = parameter - rate * gradient.nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1)
                    parameter.copy_(torch.nan_to_num(moved, 0.5, 0.5, 0.5))
        assert all(parameter.grad is None for parameter in self.model.parameters())
        self.live.clear()

    @precondition(lambda self: self.op is not None)
    @rule(seed=st.integers(0, 99), scale=st.sampled_from([1e-4, 0.1, 1.0]))
    def move_far(self, seed: int, scale: float) -> None:
        assert self.op is not None
        names = [name for name in self.op.names if name not in self.op.merged]
        if not names:
            return
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in sorted(self.op.trainable(*names).items()):
                step = torch.randn(parameter.shape, generator=generator) * scale
                parameter.copy_(torch.nan_to_num(parameter + step.to(parameter.dtype), 0.5, 0.5, 0.5))
        self.live.clear()

    @precondition(lambda self: self.op is not None)
    @rule(name=st.sampled_from(_NAMES))
    def merge(self, name: str) -> None:
        assert self.op is not None
        state, merged = model_state(self.model), self.op.merged
        try:
            self.op.merge(name)
        except StateError:
            assert_same_state(state, model_state(self.model), "by a refused merge")
            assert self.op.merged == merged
            return
        bits = self._base_bits()
        known = self.live.setdefault(self.op.merged, bits)
        assert known == bits, "the live bits depend on more than the set of merged adapters"

    @precondition(lambda self: self.op is not None)
    @rule(name=st.sampled_from(_NAMES))
    def unmerge(self, name: str) -> None:
        assert self.op is not None
        state = model_state(self.model)
        try:
            self.op.unmerge(name)
        except StateError:
            assert_same_state(state, model_state(self.model), "by a refused unmerge")
            return
        bits = self._base_bits()
        assert self.live.setdefault(self.op.merged, bits) == bits

    @precondition(lambda self: self.op is not None)
    @rule()
    def disable(self) -> None:
        assert self.op is not None
        if not self.op.names:
            return
        state = model_state(self.model)
        with self.op.disabled():
            assert self._base_bits() == self.base, "the disabled model has other weights"
            out = self.model(ToyModel.batch())
            assert torch.equal(out.nan_to_num(0.0), self.pristine.nan_to_num(0.0))
        assert_same_state(state, model_state(self.model), "by disabled()")

    @precondition(lambda self: self.op is not None and self.op.names)
    @rule(name=st.sampled_from(_NAMES))
    def save(self, name: str) -> None:
        assert self.op is not None
        if name not in self.op.names or name in self.saved:
            return
        path = self.folder / name
        state = model_state(self.model)
        self.op.save(path, name)
        assert_same_state(state, model_state(self.model), "by save")
        tensors = {key: value.detach().clone() for key, (value) in self._tensors(name).items()}
        self.saved[name] = (path, (self.op.plan(name).hash, tensors))

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        assert self.op is not None
        return {key: parameter for key, parameter, _ in self.op.body.tensors([name])}

    @precondition(lambda self: self.op is not None)
    @rule(name=st.sampled_from(_NAMES))
    def load(self, name: str) -> None:
        assert self.op is not None
        if name not in self.op.names or name not in self.saved or name in self.op.merged:
            return
        path, (made_by, tensors) = self.saved[name]
        if self.op.plan(name).hash != made_by:
            with contextlib.suppress(SurgeryError):
                self.op.load(path, name)
                raise AssertionError("an adapter of another plan was loaded")
            return
        self.op.load(path, name)
        for key, tensor in self._tensors(name).items():
            assert same_bits(tensor, tensors[key]).all()
        self.live.clear()

    @precondition(lambda self: self.op is not None)
    @rule(name=st.sampled_from(_NAMES))
    def remove(self, name: str) -> None:
        assert self.op is not None
        if name in self.op.names:
            self.op.remove(name)
            self.live.clear()

    @precondition(lambda self: self.op is not None)
    @rule()
    def change_dtype_there_and_back(self) -> None:
        """Widening and coming back loses nothing in the base; a merge or unmerge in between is refused as drift."""
        assert self.op is not None
        if self.model.head.weight.dtype == torch.float32 or not self.op.names:
            return
        dtype = self.model.head.weight.dtype
        bases = [p for key, p in self.model.named_parameters() if STATE_CHILD not in key.split(".")]
        kept = [parameter.data for parameter in bases]
        for parameter in bases:
            parameter.data = parameter.data.to(torch.float32)
        try:
            self.op.undo()
        except DriftError:
            pass
        else:
            raise AssertionError("a changed dtype went unnoticed")
        for parameter, data in zip(bases, kept, strict=True):
            parameter.data = data.to(dtype)

    @precondition(lambda self: self.op is not None)
    @rule()
    def undo(self) -> None:
        assert self.op is not None
        self.op.undo()
        self.op = None
        self.live.clear()
        self.saved.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        assert_same_state(self.before, model_state(self.model), "after undo")
        out = self.model(ToyModel.batch())
        assert torch.equal(out.nan_to_num(0.0), self.pristine.nan_to_num(0.0))

    @invariant()
    def unmerged_weights_are_the_base(self) -> None:
        if getattr(self, "op", None) is not None and self.op is not None and not self.op.merged:
            assert self._base_bits() == self.base


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
