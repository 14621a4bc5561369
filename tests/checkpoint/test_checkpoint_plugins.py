"""Adapter types with mistakes, on checkpoints: told with the adapter's name, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from merging import base_of, bytes_of
from torch import nn

from surgery import (
    Adapter,
    AdapterType,
    Factors,
    Options,
    Site,
    Spec,
    hookimpl,
    load_registry,
    merge_checkpoint,
    operate,
    plan,
    unmerge_checkpoint,
)
from surgery.errors import CheckpointError, PluginError, StateError, SurgeryError


class Plain(Adapter):
    """W + u v^T, as it should be."""

    def __init__(self, site: Site, generator: torch.Generator) -> None:
        super().__init__(site)
        self.v = nn.Parameter(torch.randn(1, site.fan_in, generator=generator))
        self.u = nn.Parameter(torch.randn(site.fan_out, 1, generator=generator))

    def factors(self, parameter: str) -> Factors | None:
        return Factors(down=self.v, up=self.u)

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return weight + self.u.to(weight.dtype) @ self.v.to(weight.dtype)


class Outer(AdapterType[Options]):
    name = "outer-trial"
    summary = "an outer product"
    make: Callable[..., Adapter] = Plain

    def claims(self, site: Site) -> bool:
        return site.is_matrix

    def parameters(self, site: Site, options: Options) -> int:
        return site.fan_in + site.fan_out

    def build(
        self, site: Site, options: Options, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        return type(self).make(site, generator)


REGISTRY = load_registry(extra=[SimpleNamespace(surgery_adapters=hookimpl(lambda: [Outer()]))])


def model_of(folder: Path) -> nn.Module:
    return base_of(folder, "LlamaForCausalLM", torch.bfloat16)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Path]:
    """A base, and an adapter that was saved when all was well."""
    model = model_of(tmp_path / "base")
    spec = Spec(name="trial", rules=[{"role": r"attention\.output", "adapter": "outer-trial"}])
    with operate(model, plan(spec, model, REGISTRY), registry=REGISTRY) as op:
        op.save(tmp_path / "notes")
    before = bytes_of(tmp_path / "base")
    yield tmp_path
    assert bytes_of(tmp_path / "base") == before
    assert not list(tmp_path.glob(".*"))


def merged(world: Path, monkeypatch: pytest.MonkeyPatch, cls: Callable[..., Adapter], **more: Any) -> Path:
    monkeypatch.setattr(Outer, "make", cls)
    return merge_checkpoint(world / "base", world / "notes", world / "out", registry=REGISTRY, **more).path


def refused(world: Path, monkeypatch: pytest.MonkeyPatch, cls: Callable[..., Adapter]) -> SurgeryError:
    with pytest.raises(SurgeryError) as caught:
        merged(world, monkeypatch, cls)
    assert not (world / "out").exists()
    assert "o_proj" in str(caught.value)
    return caught.value


FACTORS: dict[str, tuple[Callable[[Plain], Any], str]] = {
    "raises": (lambda own: {}["gone"], "factors('weight') failed: KeyError: 'gone'"),
    "a tuple": (lambda own: (own.v, own.u), "must return Factors or None, not tuple"),
    "no up": (lambda own: Factors(down=own.v), "factors('weight') do not fit"),
    "vectors": (lambda own: Factors(down=own.v[0], up=own.u[:, 0]), "factors('weight') do not fit"),
    "short": (lambda own: Factors(down=own.v, up=own.u[1:]), "factors('weight') do not fit"),
    "lists": (lambda own: Factors(down=own.v.tolist(), up=own.u.tolist()), "factors('weight') do not fit"),
    "rows": (lambda own: Factors(rows=torch.ones(3)), "factors('weight') do not fit"),
    "a column": (lambda own: Factors(rows=torch.ones(len(own.u), 1)), "factors('weight') do not fit"),
}


@pytest.mark.parametrize("mistake", FACTORS)
def test_factors_that_are_none(world: Path, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    say, expected = FACTORS[mistake]
    cls = type("Mistaken", (Plain,), {"factors": lambda self, parameter: say(self)})
    error = refused(world, monkeypatch, cls)
    assert isinstance(error, PluginError)
    assert expected in str(error)
    assert "Mistaken" in str(error)


def test_factors_that_are_not_finite_are_told_with_their_place(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def factors(self: Plain, parameter: str) -> Factors:
        return Factors(down=self.v * float("nan"), up=self.u)

    error = refused(world, monkeypatch, type("Mistaken", (Plain,), {"factors": factors}))
    assert isinstance(error, StateError)
    assert "'down' holds NaN or inf" in str(error)
    assert "Mistaken" in str(error)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_a_fold_that_is_no_plain_tensor(world: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def fold(self: Plain, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return weight.to_sparse() if kind == "sparse" else weight.to("meta")

    methods = {"factors": Adapter.factors, "fold": fold}
    error = refused(world, monkeypatch, type("Mistaken", (Plain,), methods))
    assert isinstance(error, PluginError)
    assert "must return a tensor like its argument (cpu" in str(error)


class Renamed(Plain):
    def __init__(self, site: Site, generator: torch.Generator) -> None:
        super().__init__(site, generator)
        self.w = self.u
        del self.u


class Fewer(Plain):
    """One of the saved tensors is no parameter any more: nothing but its name in the file tells."""

    def __init__(self, site: Site, generator: torch.Generator) -> None:
        super().__init__(site, generator)
        start = self.u.detach()
        del self.u
        self.register_buffer("u", start)


class Turned(Plain):
    def __init__(self, site: Site, generator: torch.Generator) -> None:
        super().__init__(site, generator)
        self.u = nn.Parameter(self.u.detach().mT)


@pytest.mark.parametrize(("cls", "expected"), [(Renamed, "/u' is extra"), (Fewer, "/u' is extra"), (Turned, "[1, ")])
def test_a_type_that_makes_other_tensors_than_were_saved(
    world: Path, monkeypatch: pytest.MonkeyPatch, cls: type[Plain], expected: str
) -> None:
    error = refused(world, monkeypatch, cls)
    assert isinstance(error, CheckpointError)
    assert expected in str(error)
    assert "install the version of adapter 'outer-trial'" in str(error)


def test_a_fold_that_fails_is_told_with_the_type_that_it_belongs_to(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fold(self: Plain, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        raise ValueError("broken")

    error = refused(world, monkeypatch, type("Mistaken", (Plain,), {"factors": Adapter.factors, "fold": fold}))
    assert "adapter 'outer-trial' (given in Python), class Mistaken" in str(error)


class Drawn(Plain):
    """It has a buffer that is not drawn from `generator`."""

    def __init__(self, site: Site, generator: torch.Generator) -> None:
        super().__init__(site, generator)
        self.register_buffer("start", torch.randn(site.fan_out, 1))

    def factors(self, parameter: str) -> Factors:
        return Factors(down=self.v, up=self.u + self.start)


class Asked(Plain):
    def factors(self, parameter: str) -> Factors:
        return Factors(down=self.v, up=self.u + torch.rand_like(self.u))


class AskedRows(Plain):
    def factors(self, parameter: str) -> Factors:
        return Factors(rows=1 + torch.rand(len(self.u)))


@pytest.mark.parametrize("cls", [Drawn, Asked, AskedRows])
def test_what_draws_has_no_way_back_by_a_residue(
    world: Path, monkeypatch: pytest.MonkeyPatch, cls: type[Plain]
) -> None:
    """The residue holds what the adapter does not tell, and would not decode with another one."""
    error = refused(world, monkeypatch, cls)
    assert isinstance(error, PluginError)
    assert f"class {cls.__name__}" in str(error)
    assert "gives other numbers each time" in str(error)
    out = merged(world, monkeypatch, cls, undo="copy")
    unmerge_checkpoint(out, world / "back", registry=REGISTRY)
    assert bytes_of(world / "back") == bytes_of(world / "base")


def test_weights_beside_a_type_without_factors_blame_that_one(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(world / "again")
    spec = Spec(name="whole", rules=[{"role": r"attention\.output", "adapter": "full"}])
    with operate(model, plan(spec, model, REGISTRY), registry=REGISTRY) as op:
        op.save(world / "whole")
    adapters = [world / "notes", world / "whole"]
    for name, expected in (
        ("notes", "'notes' cannot be weighted: 'whole', on the same parameter, is not said by factors"),
        ("whole", "'whole' cannot be weighted: it does more than add"),
    ):
        with pytest.raises(StateError) as caught:
            merge_checkpoint(world / "base", adapters, world / "out", weights={name: 0.5}, registry=REGISTRY)
        assert expected in str(caught.value)
