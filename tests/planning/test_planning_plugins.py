"""Adapter types that raise, or answer what is no answer: the error says whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pydantic import model_validator

from surgery import Adapter, AdapterType, Options, Rule, Site, Spec, plan
from surgery.errors import PluginError
from surgery.registry import Provenance, Registered, Registry
from surgery.spec import parse_spec
from surgery.testing import TOY, ToyModel


class _Checked(Options):
    rank: int = 1

    @model_validator(mode="after")
    def _check(self) -> _Checked:
        if self.rank == 0:
            raise ZeroDivisionError("by rank")
        return self


class _Mine(AdapterType[_Checked]):
    name = "mine"
    summary = "fails where it is told to"
    options = _Checked

    def __init__(self, **answers: Any) -> None:
        self._answers = answers

    def _say(self, method: str, otherwise: Any) -> Any:
        answer = self._answers.get(method, otherwise)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def claims(self, site: Site) -> bool:
        return bool(self._say("claims", site.is_matrix))

    def parameters(self, site: Site, options: _Checked) -> Any:
        return self._say("parameters", site.fan_out)

    def companions(self, site: Site, options: _Checked, available: Any) -> Any:
        return self._say("companions", ())

    def trainable_dtype(self, site: Site) -> Any:
        return self._say("trainable_dtype", "float32")

    def build(
        self, site: Site, options: _Checked, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        raise NotImplementedError


def _registry(**answers: Any) -> Registry:
    mine = Registered(_Mine(**answers), Provenance("bad", "bad-plugin", "0.3"))
    toy = Registered(TOY, Provenance("toy", "tests", ""))
    return Registry(adapters={"mine": mine}, architectures={"surgery-toy": toy}, models={}, datasets={}, tasks={})


HINT = "tell the authors of bad-plugin, or go on without it: --no-plugin bad"


@pytest.mark.parametrize(
    ("method", "answer", "said"),
    [
        ("claims", ValueError("no"), "claims failed: ValueError: no"),
        ("parameters", ZeroDivisionError("by zero"), "parameters failed: ZeroDivisionError: by zero"),
        ("parameters", None, "parameters must return a number of parameters, not None"),
        ("parameters", 6.0, "parameters must return a number of parameters, not 6.0"),
        ("parameters", -5, "parameters must return a number of parameters, not -5"),
        ("companions", AttributeError("nope"), "companions failed: AttributeError: nope"),
        ("companions", "bias", "companions must return a tuple of names, not 'bias'"),
        ("companions", None, "companions must return a tuple of names, not None"),
        ("trainable_dtype", KeyError("x"), "trainable_dtype failed: KeyError: 'x'"),
        ("trainable_dtype", "flaot32", "trainable_dtype must return the name of a dtype, such as 'float32', not 'flaot32'"),
        ("trainable_dtype", torch.float32, "trainable_dtype must return the name of a dtype, such as 'float32', not torch.float32"),
    ],
)  # fmt: skip
def test_an_adapter_type_that_fails_is_named_with_its_distribution(method: str, answer: Any, said: str) -> None:
    with pytest.raises(PluginError) as caught:
        plan(Spec(name="x", rules=[Rule(role="mlp.up", adapter="mine")]), ToyModel(), _registry(**{method: answer}))
    assert caught.value.what == said
    assert caught.value.where == "adapter 'mine' (bad-plugin 0.3) on body.layers.0.up.weight"
    assert caught.value.hint == HINT


def test_options_whose_check_fails_are_named_too() -> None:
    said = "checking the options failed: ZeroDivisionError: by rank"
    with pytest.raises(PluginError) as caught:
        parse_spec("version: 1\nname: x\nrules:\n  - {role: mlp.up, adapter: mine, rank: 0}\n", catalog=_registry())
    assert (caught.value.what, caught.value.where, caught.value.hint) == (said, "adapter 'mine' (bad-plugin 0.3)", HINT)
    with pytest.raises(PluginError) as caught:
        plan(Spec(name="x", rules=[Rule(role="mlp.up", adapter="mine", rank=0)]), ToyModel(), _registry())
    assert caught.value.what == said
    assert caught.value.where == "adapter 'mine' (bad-plugin 0.3) on rules[0]"
