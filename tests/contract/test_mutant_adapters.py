"""`check_adapter` can fail: each way in which an author may break the contract is told in words that name it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from surgery import Adapter, AdapterType, Factors, Options, Site, Work
from surgery.errors import PluginError
from surgery.testing import check_adapter


class Rows(Adapter):
    """W' = diag(1 + s) W: correct."""

    def __init__(self, site: Site, generator: torch.Generator) -> None:
        super().__init__(site)
        self.s = nn.Parameter(0.1 * torch.randn(site.fan_out, generator=generator))

    def factor(self, dtype: torch.dtype) -> torch.Tensor:
        return (1 + self.s.to(dtype)).unsqueeze(1)

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return weight * self.factor(weight.dtype)


class Kind(AdapterType[Any]):
    """Claims matrices, and builds what `adapter` says: correct."""

    name = "rows"
    summary = "for tests"
    adapter: type[Rows] = Rows

    def __init_subclass__(cls) -> None:
        cls.__module__ = "__main__"  # as in a notebook: this module imports torch, which is not what is wrong here

    def claims(self, site: Site) -> bool:
        return site.is_matrix and site.parameter == "weight"

    def parameters(self, site: Site, options: Options) -> int:
        return site.fan_out

    def build(
        self, site: Site, options: Options, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        return self.adapter(site, generator)


class Plain(Kind):
    """Claims whole linear maps only, which keeps what acts on the output short."""

    def claims(self, site: Site) -> bool:
        return super().claims(site) and site.host == "linear" and not site.tied


# Adapters that are wrong --------------------------------------------------------------------------------------------


class IgnoresWeight(Rows):
    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return pristine * self.factor(pristine.dtype)


class CachesFactor(Rows):
    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        if "kept" not in vars(self):
            vars(self)["kept"] = self.factor(torch.float64).detach()
        return weight * self.kept.to(weight.dtype) + 0 * self.factor(weight.dtype)


class CachesInMerge(Rows):
    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        if weight.dtype != torch.float64:
            return super().fold(parameter, weight, pristine)
        if "kept" not in vars(self):
            vars(self)["kept"] = self.factor(torch.float64).detach()
        return weight * self.kept


class ReplacesByTheBase(Rows):
    replaces = True


class ReplacesByAPictureOfTheBase(Rows):
    """Does not read the base in `fold`, and has kept it."""

    replaces = True
    kept: torch.Tensor

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        mine = self.kept.to(weight.dtype) * self.factor(weight.dtype)
        return mine if weight is pristine else weight + (mine - pristine)


class DrawsAnAttribute(Rows):
    def __init__(self, site: Site, generator: torch.Generator) -> None:
        super().__init__(site, generator)
        self.r = torch.randn(site.fan_out)

    def factor(self, dtype: torch.dtype) -> torch.Tensor:
        return (1 + (self.s * self.r).to(dtype)).unsqueeze(1)


class DropsOutInFold(Rows):
    def factor(self, dtype: torch.dtype) -> torch.Tensor:
        return (1 + F.dropout(self.s, 0.5, self.training).to(dtype)).unsqueeze(1)


class DrawsInFold(Rows):
    def factor(self, dtype: torch.dtype) -> torch.Tensor:
        return super().factor(dtype) + torch.randn(1)


class TrainsOtherwise(Rows):
    def factor(self, dtype: torch.dtype) -> torch.Tensor:
        return super().factor(dtype) * (2 if self.training else 1)


class LosesPrecision(Rows):
    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return (weight.float() * self.factor(torch.float32)).to(weight.dtype)


class ReturnsFloat(Rows):
    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return weight.float() * self.factor(torch.float32)


class Writes(Rows):
    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return weight.mul_(self.factor(weight.dtype).detach()) + 0 * self.factor(weight.dtype)


class ReturnsNothing(Rows):
    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> Any:
        return weight * self.factor(weight.dtype) if weight.dtype != torch.float64 else None


class Detaches(Rows):
    def factor(self, dtype: torch.dtype) -> torch.Tensor:
        return super().factor(dtype).detach()


class Frozen(Rows):
    def __init__(self, site: Site, generator: torch.Generator) -> None:
        super().__init__(site, generator)
        self.s.requires_grad_(False)


class Says(Rows):
    """Says its factors, for every expert the same ones: correct."""

    def factors(self, parameter: str) -> Any:
        return Factors(rows=self.factor(self.s.dtype).squeeze(-1))

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return weight * self.factor(weight.dtype)


class SaysOtherwise(Says):
    def factors(self, parameter: str) -> Any:
        return Factors(rows=self.s)


class SaysATuple(Says):
    def factors(self, parameter: str) -> Any:
        return (self.s,)


class RankOne(Rows):
    """W + s 1^T, said as factors: correct."""

    def factors(self, parameter: str) -> Any:
        return Factors(down=torch.ones(1, self.site.fan_in), up=self.s.unsqueeze(1))

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        folded: torch.Tensor = self.factors(parameter).fold(weight)
        return folded


class SaysWrongRows(RankOne):
    def factors(self, parameter: str) -> Any:
        return Factors(rows=torch.ones(3))


class SaysItTurned(RankOne):
    def factors(self, parameter: str) -> Any:
        return Factors(down=torch.ones(self.site.fan_in, 1), up=self.s.unsqueeze(0))


class SaysUpTurned(RankOne):
    def factors(self, parameter: str) -> Any:
        return Factors(down=torch.ones(1, self.site.fan_in), up=self.s.unsqueeze(0))


class Acts(Rows):
    """W + s 1^T by way of the output: correct, for `Plain`."""

    activates = True

    def __init__(self, site: Site, generator: torch.Generator) -> None:
        super().__init__(site, generator)
        self.register_buffer("calls", torch.zeros(1))

    def fold(self, parameter: str, weight: torch.Tensor, pristine: torch.Tensor) -> torch.Tensor:
        return weight + self.s.to(weight.dtype).unsqueeze(1)

    @classmethod
    def activate(cls, group: Sequence[Self], inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output + (inputs.float().sum(-1, keepdim=True) * group[0].s).to(output.dtype)


class Counts(Acts):
    @classmethod
    def activate(cls, group: Sequence[Self], inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        group[0].calls.add_(1)
        return super().activate(group, inputs, output)


class ActsOnNoClass(Acts):
    def activate(self, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return output


class ActsNotAtAll(Rows):
    activates = True


class DropsOutAlways(Acts):
    @classmethod
    def activate(cls, group: Sequence[Self], inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return super().activate(group, F.dropout(inputs), output)


def kind(adapter: type[Rows], base: type[Kind] = Kind) -> type[Kind]:
    return type("Mutant", (base,), {"adapter": adapter})


# Types that are wrong -----------------------------------------------------------------------------------------------


class OnExperts(Kind):
    """Claims weights of experts, too: correct."""

    def claims(self, site: Site) -> bool:
        return super().claims(site) or bool(site.experts)


class CountsExperts(OnExperts):
    adapter = Says

    def parameters(self, site: Site, options: Options) -> int:
        return site.fan_out * max(site.experts, 1)


class SaysItReplaces(Kind):
    def work(self, site: Site, options: Options) -> Any:
        return Work(replaces=True)


class SaysANumber(Kind):
    def work(self, site: Site, options: Options) -> Any:
        return 2


class SaysAnotherRank(Kind):
    adapter = RankOne

    def work(self, site: Site, options: Options) -> Any:
        return Work(rank=3)


class Half(Kind):
    def parameters(self, site: Site, options: Options) -> Any:
        return site.fan_out / 1


class Negative(Kind):
    def parameters(self, site: Site, options: Options) -> int:
        return -site.fan_out


class Moody(Kind):
    def claims(self, site: Site) -> bool:
        return super().claims(site) and random.random() < 0.5


class Idle(Kind):
    def claims(self, site: Site) -> bool:
        return False


class Sharing(Kind):
    def __init__(self) -> None:
        self.kept: dict[int, nn.Parameter] = {}

    def build(
        self, site: Site, options: Options, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        adapter = Rows(site, generator)
        adapter.s = self.kept.setdefault(site.fan_out, adapter.s)
        return adapter


class Remembering(Plain):
    def build(
        self, site: Site, options: Options, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> Adapter:
        adapter = ReplacesByAPictureOfTheBase(site, generator)
        adapter.register_buffer("kept", pristine["weight"])
        return adapter


class Demanding(Kind):
    class Wanted(Options):
        rank: int

    options = Wanted


class Spaced(Kind):
    name = "My Rows"


MUTANTS: dict[str, tuple[Callable[[], Any], str]] = {
    "ignores weight": (kind(IgnoresWeight), r"ignores `weight`, and so wipes out the adapters"),
    "caches a factor": (kind(CachesFactor), r"remembers what it computed before"),
    "caches a factor in merges": (kind(CachesInMerge), r"remembers what it computed before"),
    "replaces by the base": (kind(ReplacesByTheBase), r"depends on the base, and the class says `replaces`"),
    "replaces by a picture of the base": (Remembering, r"depends on the base, and the class says `replaces`"),
    "draws an attribute": (kind(DrawsAnAttribute), r"drawn elsewhere than from `generator`"),
    "drops out in fold": (kind(DropsOutInFold), r"something else in training mode.* dropout belongs into activate"),
    "draws in fold": (kind(DrawsInFold), r"something else when called again"),
    "trains otherwise": (kind(TrainsOtherwise), r"something else in training mode"),
    "loses precision": (kind(LosesPrecision), r"computes in less than float64"),
    "returns float32": (kind(ReturnsFloat), r"returns torch.float32 for torch.float64"),
    "writes to weight": (kind(Writes), r"fold\('weight'\) on \S+ writes to its arguments"),
    "returns nothing": (kind(ReturnsNothing), r"must return a tensor, not NoneType"),
    "detaches": (kind(Detaches), r"no trainable tensor has a part in the output"),
    "freezes a parameter": (
        kind(Frozen),
        r"'s' on body.embedding.weight takes no gradient: make what is frozen a buffer",
    ),
    "shares a parameter": (Sharing, r"'s' on \S+ and 's' on \S+ are one: each site must have its own"),
    "changes a buffer": (kind(Counts, Plain), r"a forward changes the buffer 'calls'"),
    "drops out in evaluation": (kind(DropsOutAlways, Plain), r"may drop out only while `training` is set"),
    "activate is no classmethod": (kind(ActsOnNoClass, Plain), r"ActsOnNoClass.activate must be a classmethod"),
    "activate is not there": (kind(ActsNotAtAll), r"sets `activates` and does not implement `activate`"),
    "says other factors": (kind(SaysOtherwise), r"factors of SaysOtherwise on \S+ and its fold say different things"),
    "says a tuple": (kind(SaysATuple), r"factors of SaysATuple on \S+ must return Factors or None, not \("),
    "says wrong rows": (
        kind(SaysWrongRows),
        r"factors of \S+ on \S+ do not fit the weight: rows is \(3,\), wanted \(\d+,\)",
    ),
    "says turned factors": (kind(SaysItTurned), r"down is \(\d+, 1\), wanted \(1, \d+\); it is transposed"),
    "says up turned": (kind(SaysUpTurned), r"up is \(1, \d+\), wanted \(\d+, 1\); it is transposed"),
    "says that it replaces": (SaysItReplaces, r"work\(\) says replaces=True on \S+, and Rows says otherwise"),
    "says another rank": (SaysAnotherRank, r"work\(\) says rank 3 on \S+, and factors\(\) 1"),
    "says a number": (SaysANumber, r"work\(\) must return a Work or None, not 2, on"),
    "counts experts wrongly": (CountsExperts, r"promises 18 on 3 experts of \(6, 4\) in a host of kind 'experts'"),
    "counts in halves": (Half, r"parameters\(\) must return a whole number, not \d+\.0"),
    "counts below zero": (Negative, r"parameters\(\) must not be negative, as -\d+ is"),
    "claims at random": (Moody, r"claims\(\) answers otherwise when it is asked again"),
    "claims nothing": (Idle, r"claims\(\) accepts no site of the toy model"),
    "has a required option": (
        Demanding,
        r"key 'rank' is missing; give check_adapter\(kind, \{...\}\) or implement def",
    ),
    "has a name of two words": (Spaced, r"a name is letters, digits"),
    "is a class": (lambda: Kind, r"give an instance, not the class: check_adapter\(Kind\(\)\)"),
    "is something else": (lambda: Rows, r"give an instance, not the class"),
}


@pytest.mark.parametrize(
    "correct", [kind(Rows)(), kind(Acts, Plain)(), kind(Says, OnExperts)()], ids=["folds", "acts", "says"]
)
def test_what_the_mutants_are_made_of_is_correct(correct: AdapterType[Any]) -> None:
    check_adapter(correct)


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_mutant_is_told_what_is_wrong(name: str) -> None:
    make, said = MUTANTS[name]
    with pytest.raises((AssertionError, PluginError), match=said):
        check_adapter(make(), dtypes=(torch.float32,))


def test_an_adapter_that_forgets_those_beside_it_is_told() -> None:
    """By way of the output, where `fold` itself is right."""

    class Overwrites(Acts):
        @classmethod
        def activate(cls, group: Sequence[Self], inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            return super().activate(group, inputs, F.linear(inputs, group[0].kept))

    class Whole(Plain):
        def claims(self, site: Site) -> bool:
            return super().claims(site) and site.role == "mlp.down"  # which has no bias

        def build(
            self, site: Site, options: Options, pristine: Mapping[str, torch.Tensor], generator: torch.Generator
        ) -> Adapter:
            adapter = Overwrites(site, generator)
            adapter.kept = pristine["weight"]
            return adapter

    with pytest.raises(AssertionError, match="an adapter that was applied before on the same sites loses its effect"):
        check_adapter(Whole(), dtypes=(torch.float32,))


# How the module of an adapter type imports ---------------------------------------------------------------------------

SOURCE = """
{top}
from surgery import AdapterType

class Rows(AdapterType):
    name = "rows"
    summary = "for tests"
    def claims(self, site): return site.is_matrix and site.parameter == "weight"
    def parameters(self, site, options): return site.fan_out
    def build(self, site, options, pristine, generator):
        from test_mutant_adapters import Rows
        return Rows(site, generator)
"""


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ("", ""),
        ("import torch", "importing checked_package.kind imports torch"),
        (
            "import sys\nassert 'pytest' in sys.modules",
            "importing checked_package.kind in a new process fails:(.|\n)*Assert",
        ),
    ],
    ids=["well", "torch", "not at all"],
)
def test_a_module_inside_of_a_package_is_imported_anew(
    top: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "checked_package"
    package.mkdir()
    (package / "__init__.py").write_text("", "utf-8")
    (package / "kind.py").write_text(SOURCE.format(top=top), "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "test_mutant_adapters", sys.modules[__name__])
    try:
        from checked_package.kind import Rows as Found  # type: ignore[import-not-found]

        if not said:
            check_adapter(Found(), dtypes=(torch.float32,))
            return
        with pytest.raises(AssertionError, match=said):
            check_adapter(Found(), dtypes=(torch.float32,))
    finally:
        for module in ("checked_package.kind", "checked_package"):
            sys.modules.pop(module, None)
