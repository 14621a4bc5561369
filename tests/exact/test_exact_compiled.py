"""The compiled loops beside the forms of torch and numpy: every bit the same, and mistakes in them are noticed."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from oracle import merged

from surgery.checkpoint.report import Tally
from surgery.errors import CheckpointError
from surgery.exact import Delta, Product, decode, encode, loops, merge_block, passing, residue, same_bits
from surgery.exact.candidates import candidates
from surgery.exact.loops import unsigned

compiled = pytest.importorskip("surgery.exact.compiled", reason="numba is not installed: pip install '.[compiled]'")

DTYPES = [torch.bfloat16, torch.float32]
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**-133, -(2.0**-149), 2.0**-126, 3.0e38, -1.0, 2.0**-8]


@pytest.fixture(scope="module", autouse=True)
def arithmetic() -> None:
    """Both forms are asked for by name here."""


def numbers(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """Weights of all magnitudes, special ones among them."""
    generator = torch.Generator().manual_seed(seed)
    powers = torch.randint(-12, 3, (count,), generator=generator)
    found = torch.randn(count, generator=generator) * 2.0**powers
    found[::37] = torch.tensor(SPECIAL).repeat(count // 37 + 1)[: len(found[::37])]
    return found.to(dtype)


def same_candidates(loops_: ModuleType) -> None:
    size = 40_003
    halves = torch.randint(-64, 64, (size,), generator=torch.Generator().manual_seed(2)).double()
    for dtype, is_coarse in itertools.product(DTYPES, (False, True)):
        merged_, scale = numbers(dtype, size, 1), torch.logspace(-9, 3, size, dtype=torch.float64)
        delta = numbers(torch.float64, size, 2) * scale
        if is_coarse:  # ends of intervals are numbers of the dtype
            unit = torch.finfo(dtype).eps
            merged_ = (1 + torch.arange(size) % 64 * unit).to(dtype)
            delta = halves * unit / 8
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loops, "_compiled", lambda: None)
            plain = candidates(merged_, delta)
            patch.setattr(loops, "_compiled", lambda: loops_)
            patch.setattr(loops, "_WORTH", 0)
            got = candidates(merged_, delta)
        for name in ("guess", "places", "first", "widths", "counts"):
            assert np.array_equal(getattr(got, name), getattr(plain, name)), name
        assert plain.places.size > size / 100


def same_merged(loops_: ModuleType) -> None:
    generator = torch.Generator().manual_seed(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "_compiled", lambda: loops_)
        patch.setattr(loops, "_WORTH", 0)
        for dtype in DTYPES:
            for factor in (torch.float64, torch.bfloat16):
                weight = numbers(dtype, 48 * 50, 4).view(48, 50)
                weight[weight.abs() > 1e30] = math.inf
                weight[::5] = (weight[::5].double() * 2.0**-120).to(dtype)
                up = torch.randn(48, 3, generator=generator, dtype=torch.float64).to(factor)
                weight[7, ::3] = -0.0
                up[7], up[::5] = 0, up[::5] * 2.0**-100
                down = torch.randn(3, 50, generator=generator, dtype=torch.float64).to(factor) * 2.0**-9
                down[:, 11] = 0
                products = [(up, down, 0.5), (up[:, :1], down[:1] * 2.0**-14, 1.0 if factor == torch.bfloat16 else 0.3)]
                delta = Delta([Product(*one) for one in products], (48, 50))
                added = torch.empty(48, 50, dtype=torch.float64)
                assert same_bits(merge_block(weight, delta, 0, added=added), merged(weight, products)).all()


def ties(loops_: ModuleType) -> None:
    """Adapters of few bits make sums that lie in the middle between two numbers, or just beside."""
    generator = torch.Generator().manual_seed(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "_compiled", lambda: loops_)
        patch.setattr(loops, "_WORTH", 0)
        for dtype in DTYPES:
            unit = torch.finfo(dtype).eps
            weight = (1 + torch.randint(0, 64, (40, 40), generator=generator) * unit).to(dtype)
            for least in (2.0**-8, 2.0**-40, 2.0**-55):
                up = torch.randint(-3, 4, (40, 2), generator=generator).double() * unit / 2
                up[:, 1] *= least
                products = [(up, torch.randint(-1, 2, (2, 40), generator=generator).double(), 1.0)]
                delta = Delta([Product(*one) for one in products], (40, 40))
                added = torch.empty(40, 40, dtype=torch.float64)
                assert same_bits(merge_block(weight, delta, 0, added=added), merged(weight, products)).all()


def overflow(loops_: ModuleType) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "_compiled", lambda: loops_)
        patch.setattr(loops, "_WORTH", 0)
        for dtype in DTYPES:
            weight = torch.full((3, 9), torch.finfo(dtype).max, dtype=dtype)
            for more, scale in ((1e38, 1.0), (1e38, 0.7), (0.75 * 2.0**120, 1.0)):  # the last is finite in float32
                delta = Delta([Product(torch.tensor([[0.0], [0.0], [more]]), torch.ones(1, 9), scale)], (3, 9))
                with pytest.raises(Exception, match="NaN or inf"):
                    merge_block(weight, delta, 0, added=torch.empty(3, 9, dtype=torch.float64))


def same_totals(loops_: ModuleType) -> None:
    for dtype in DTYPES:
        for size in (16 * 100, 16 * 100 + 7, 3):
            generator = torch.Generator().manual_seed(size)
            old = torch.randn(size, generator=generator).to(dtype)
            delta = torch.randn(size, generator=generator, dtype=torch.float64) * torch.logspace(-12, 0, size)
            delta[::3] = 0
            new, found = (old.double() + delta).to(dtype), np.zeros(5)
            loops_.totals(unsigned(old), unsigned(new), delta.numpy(), found)
            wide, stored = old.double(), new.double() - old.double()
            sums = [(wide**2).sum(), (delta**2).sum(), ((stored - delta) ** 2).sum()]
            assert found[:3] == pytest.approx([float(one) for one in sums], rel=1e-5)
            assert found[3:].tolist() == [int((delta != 0).sum()), int(((delta != 0) & (stored == 0)).sum())]
            for factor in (2.0**-60, 2.0**66):  # squares that float32 does not hold
                moved = [(one.double() * factor).to(dtype) for one in (old, new)]
                again = np.zeros(5)
                loops_.totals(*map(unsigned, moved), (delta * factor).numpy(), again)
                assert again[:3] == pytest.approx(found[:3] * factor**2, rel=1e-5, abs=0.0)
            old[2], new[2], again = math.nan, math.nan, np.zeros(5)
            loops_.totals(unsigned(old), unsigned(new), delta.numpy(), again)
            assert again[0] == pytest.approx(float(wide[torch.arange(size) != 2].square().sum()), rel=1e-5)


def same_codes(loops_: ModuleType) -> None:
    """Ranks of any width, zeros, patches before, at and after places: each as numpy writes and reads it."""
    generator = torch.Generator().manual_seed(11)
    forms = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "_WORTH", 0)
        for dtype, size, pruned in itertools.product(DTYPES, (0.003, 0.3, 300.0), (False, True)):
            weight = torch.randn(64, 128, generator=generator) * 0.02
            weight = torch.where(torch.rand(64, 128, generator=generator) < 0.8 * pruned, 0, weight).to(dtype)
            delta = torch.randn(64, 128, generator=generator).double() * 0.02 * size
            result = (weight.double() + delta).to(dtype)
            weight[::7, ::5] = -1.5
            blobs = []
            for codes in (None, loops_):
                patch.setattr(residue, "compiled_for", lambda tensor, part, codes=codes: codes)
                blobs.append(encode(weight, result, delta))
                assert same_bits(decode(result, delta, blobs[0]), weight).all()
            assert blobs[0] == blobs[1]
            forms.add(blobs[0][5])
    assert forms >= {residue._RANKS, residue._ZEROS}


def same_pass(loops_: ModuleType) -> None:
    """One pass gives what rounding, reporting and encoding give one after the other."""
    generator = torch.Generator().manual_seed(13)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "_WORTH", 0)
        patch.setattr(passing, "compiled_for", lambda tensor, part: loops_)
        for dtype, factor, case in itertools.product(DTYPES, (torch.float32, torch.bfloat16), range(3)):
            rows, columns, start = 22, 600, 3
            weight = numbers(dtype, rows * columns, 4).view(rows, columns)
            weight[weight.abs() > 1e30] = math.inf
            weight[5] = (1 + torch.randint(0, 64, (columns,), generator=generator) * torch.finfo(dtype).eps).to(dtype)
            up = torch.randn(rows + start, 5, generator=generator)
            up[3 + 5] = torch.randint(-3, 4, (5,), generator=generator) * torch.finfo(dtype).eps / 2
            up[9], weight[6, ::3], weight[4, 5:12] = 0, -0.0, -0.0
            down = torch.randn(5, columns, generator=generator) * 2.0**-9
            down[:, 11], down[:, 200:220] = 0, torch.randint(-1, 2, (5, 20), generator=generator).float()
            products = [Product(up.to(factor), down.to(factor), 0.5)]
            if case:
                products.append(Product(up[:, :1].to(factor), down[:1].to(factor), 0.3))
            delta = Delta(products, (rows + start, columns))
            for is_correct in (True, False) if dtype == torch.bfloat16 else (True,):
                out, added = torch.empty_like(weight), torch.empty(weight.shape, dtype=torch.float64)
                patch.setattr(loops, "_compiled", lambda: None)
                known = merge_block(weight, delta, start, is_correct, None, added)
                blob, tally = encode(weight, known, added), Tally()
                tally.add(weight, known, added)
                patch.setattr(loops, "_compiled", lambda: compiled)
                found = passing.passage(weight, delta, start, correct=is_correct, out=out, with_residue=True)
                assert found is not None
                assert same_bits(out, known).all()
                assert found.residue == blob
                assert found.sums == pytest.approx((tally.base, tally.delta, tally.error, *found.sums[3:]), rel=1e-3)
                assert found.sums[3] == int(((added != 0) & weight.isfinite()).sum())
                assert same_bits(decode(out, added, blob), weight).all()


def whole_overflow(loops_: ModuleType) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "_WORTH", 0)
        patch.setattr(passing, "compiled_for", lambda tensor, part: loops_)
        for dtype, is_correct in ((torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True)):
            weight = torch.full((7, 200), torch.finfo(dtype).max, dtype=dtype)
            up = torch.tensor([[0.0]] * 7)
            up[5] = 1e38
            delta = Delta([Product(up, torch.ones(1, 200))], (7, 200))
            with pytest.raises(Exception, match="NaN or inf") as told:
                passing.passage(weight, delta, 0, correct=is_correct, out=weight.clone(), with_residue=True)
            assert "row 5, column 0" in str(told.value)


CHECKS = [
    (same_candidates, ""), (same_merged, ""), (ties, ""), (overflow, ""), (same_totals, "sums"), (same_codes, "codes"),
    (same_pass, "pass"), (whole_overflow, "pass"),
]  # fmt: skip


def file_of(part: str) -> str:
    return f"surgery.exact.compiled_{part}" if part else "surgery.exact.compiled"


@pytest.mark.parametrize(("check", "part"), CHECKS)
def test_the_bits_are_the_same(check: Callable[[ModuleType], None], part: str) -> None:
    check(importlib.import_module(file_of(part)))


def test_reports_are_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(7)
    old, delta = (torch.randn(5000, generator=generator, dtype=torch.float64) for _ in range(2))
    old, delta = old.bfloat16(), delta * 1e-3
    new = (old.double() + delta).to(torch.bfloat16)
    plain, quick, stopped = Tally(), Tally(), Tally()
    plain.add(old, new, delta)
    monkeypatch.setattr(loops, "_WORTH", 0)
    quick.add(old, new, delta)
    known, found = (tuple(one.record("w").to_dict().values())[1:] for one in (plain, quick))
    assert found == pytest.approx(known, rel=1e-4)
    old[3] = math.inf
    new[3] = math.inf
    stopped.add(old, new, delta)
    assert math.isfinite(stopped.record("w").delta_rel)


def test_residues_are_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in DTYPES:
        original = (torch.randn(256, 256, generator=torch.Generator().manual_seed(1)) * 0.02).to(dtype)
        delta = torch.randn(256, 256, generator=torch.Generator().manual_seed(2)).double() * 2e-4
        merged_ = (original.double() + delta).to(dtype)
        blobs = []
        for worth in (0, 1 << 40):
            monkeypatch.setattr(loops, "_WORTH", worth)
            blobs.append(encode(original, merged_, delta))
            assert same_bits(decode(merged_, delta, blobs[0]), original).all()
        assert blobs[0] == blobs[1]


def test_a_broken_numba_is_told_and_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise AttributeError('no such luck')")
    program = """
import torch
from surgery.exact import Delta, Product, merge_block
delta = Delta([Product(torch.ones(512, 1), torch.ones(1, 512))], (512, 512))
print(float(merge_block(torch.zeros(512, 512).bfloat16(), delta, 0).sum()))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout.strip() == "262144.0"
    assert run.stderr.count("no such luck") == 1
    assert "merging goes on without" in run.stderr


MUTANTS = {
    "zero is never negative": ("if bound == 0.0:", "if bound < 0.0:", same_merged, ""),
    "bounds are not compared": ("np.uint8(low != high)", "np.uint8(0)", ties, ""),
    "the error is forgotten": ("magnitude * (1.0 + slack) + bound", "magnitude * 1.0", ties, ""),
    "middles are not seen": ("(np.abs(total - middle) > margin) & ", "", ties, ""),
    "sums are taken to be exact": ("is_whole = (total - own == more)", "is_whole = (total == total)", ties, ""),
    "the end is not seen": ("np.uint8(high >= edge)", "np.uint8(0)", overflow, ""),
    "the end of bfloat16 is not seen": (" & (magnitude < np.float32(2.0**127))", "", overflow, ""),
    "-0 is a guess": ("if found == np.uint32(0x8000) else", "if found == np.uint32(0x8001) else", same_candidates, ""),
    "NaN is a guess": ("np.float32(0) if np.isnan(value) else value", "value", same_candidates, ""),
    "binades are compared one off": ("- np.uint16(1)) & ", ") & ", same_candidates, ""),
    "the low end belongs to it": ("size)) < low)", "size)) <= low)", same_candidates, ""),
    "the high end does not": ("size)) > high)", "size)) >= high)", same_candidates, ""),
    "single candidates are not taken": ("guess[index] = np.uint32(order_of(begin_at, size))", "pass", same_candidates, ""),
    "the last few are not listed": ("for index in range(whole, flags.size)", "for index in range(0)", same_candidates, ""),
    "the last few are left out": ("range(whole if is_plausible else begin, end)", "range(0)", same_totals, "sums"),
    "float32 holds any square": ("low, high = 2.0**-60, 2.0**100", "low, high = -1.0, np.inf", same_totals, "sums"),
    "NaN is added": ("if np.abs(base) < np.inf:", "if True:", same_totals, "sums"),
    "bits of all widths are one row": ("+ 7) // 8 * 8", "+ 7) // 1", same_codes, "codes"),
    "zeros are never patched": ("is_wrong = pattern != 0", "is_wrong = False", same_codes, "codes"),
    "strays come last": ("strays[stray] < index", "strays[stray] < 0", same_codes, "codes"),
    "a rank is a candidate's number from 1": ("- first\n", "- first + 1\n", same_codes, "codes"),
    "scales are left out": ("scales[which] != 1.0", "False", same_pass, "pass"),
    "one product is enough": ("if which:", "if False:", same_pass, "pass"),
    "a product has no error": ("low, high = total - radius, total + radius", "low = high = total", same_pass, "pass"),
    "what is settled is not looked at": ("if found == _round_once(high, size) and", "if", same_pass, "pass"),
    "-0 is summed": ("if stays or not", "if not", same_pass, "pass"),
    "zeros are settled": (" or norm == 0.0 or (is_exact and value == 0.0)", "", same_pass, "pass"),
    "overflow is a number": ("np.uint32(0x7F80):", "np.uint32(0xFFFF):", whole_overflow, "pass"),
    "overflow is settled": (" and max(np.abs(low), np.abs(high)) < 2.0**127", "", whole_overflow, "pass"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_mutant_dies(name: str, tmp_path: Path) -> None:
    before, after, check, part = MUTANTS[name]
    source = Path(str(importlib.import_module(file_of(part)).__file__)).read_text("utf-8")
    assert source.count(before) >= 1
    file = tmp_path / "mutant.py"
    file.write_text(source.replace(before, after).replace("cache=True", "cache=False"), "utf-8")
    spec = importlib.util.spec_from_file_location("mutant", file)
    assert spec is not None
    assert spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    if part == "pass":  # compiling all of it again takes longer than running it uncompiled: what it calls is compiled
        mutant.whole_pass = mutant.whole_pass.py_func
    with pytest.raises((AssertionError, pytest.fail.Exception, CheckpointError)):
        check(mutant)
