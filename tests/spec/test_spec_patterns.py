"""Regular expressions from strangers, and layer selectors."""

from __future__ import annotations

import pickle
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgery.errors import PlanError, SpecError
from surgery.spec import Pattern, compile_pattern, layer_indices

NAMES = ["a" * 96, "a" * 512 + "b", "bert.encoder.layer.11.attention.self.query", "", "\U0001f600" * 100]
BACKTRACKING = [
    "(a+)+$",
    "(.*)*x$",
    "(a|aa)+$",
    ".*.*.*.*.*.*.*.*x$",
    r"(a*)*\1b",
    "(a|a|a|a)*b",
    "((a*)*)*c",
    "(?<!a*b*c*)d",
]
EXPLODING = [
    "((a{1,500}){1,500}){1,500}",
    "a{999999999}",
    "(a{1000}){1000}",
    "(){99999}",
    "{99999}",
    "({99999})",
    "(?i){99999}",
    "|{99999}",
    "a{500}" * 5,
    "(?:" + "|".join(["a{99}"] * 60) + "){99}",
    "(" * 250 + ")" * 250,
    "(?R)",
    "(?1)(a)",
    "(?&x)(?<x>a)",
    "(a){e<=3}",
    "(?e)a",
    r"\L<x>",
    r"\K",
    "(?V1)[a--b]",
    "(?#c)",
    "x" * 513,
    "",
]


def test_full_match_only() -> None:
    pattern = compile_pattern(r"layer\.\d+\.(query|value)")
    assert pattern.fullmatch("layer.11.query")
    assert not pattern.fullmatch("layer.11.query.weight")
    assert compile_pattern("(?i)ABC").fullmatch("abc")
    assert compile_pattern("a{2,3}").fullmatch("aaa")
    assert compile_pattern(r"(?<!x)[^]a]+(?=b)b").fullmatch("cdb")
    assert pickle.loads(pickle.dumps(pattern)) == pattern
    assert hash(pattern) == hash(compile_pattern(r"layer\.\d+\.(query|value)"))
    assert repr(pattern) == f"Pattern({pattern.text!r})"
    assert pattern != "text"


@pytest.mark.parametrize("text", BACKTRACKING)
def test_backtracking_is_cut_off(text: str) -> None:
    pattern = compile_pattern(text)
    for name in NAMES:
        begin = time.process_time()
        try:
            pattern.fullmatch(name)
        except SpecError as error:
            assert text in error.what
            assert "simplify" in error.hint
        assert time.process_time() - begin < 0.5


def test_a_timeout_is_an_error() -> None:
    with pytest.raises(SpecError, match="took more than 50 ms"):
        compile_pattern("(a|aa)+$").fullmatch("a" * 96 + "b")


@pytest.mark.parametrize("text", EXPLODING)
def test_exploding_patterns_are_refused_at_once(text: str) -> None:
    begin = time.process_time()
    with pytest.raises(SpecError, match="not a usable regular expression") as caught:
        compile_pattern(text)
    assert time.process_time() - begin < 0.2
    assert caught.value.hint


@settings(max_examples=400, deadline=1000)
@given(st.text(st.sampled_from(list("ab()[]{}|*+?.\\^$-,<>=!:&#0129dwLRPie ")), max_size=40) | st.text(max_size=20))
@example("(?<=a{,9})b")
@example("[[:alpha:](]{9}")
def test_any_text_is_a_pattern_or_a_spec_error(text: str) -> None:
    try:
        pattern = compile_pattern(text)
        assert isinstance(pattern, Pattern)
        for name in NAMES:
            pattern.fullmatch(name)
    except SpecError:
        pass


@pytest.mark.parametrize(
    ("selector", "indices"),
    [
        ("all", tuple(range(12))),
        ("0-5", (0, 1, 2, 3, 4, 5)),
        ("0-2,5", (0, 1, 2, 5)),
        ("0-2, 1-3 ,-1", (0, 1, 2, 3, 11)),
        ([0, 3, -1, 11, 3], (0, 3, 11)),
        ((5,), (5,)),
        ("last 4", (8, 9, 10, 11)),
        ("first 4", (0, 1, 2, 3)),
        ("last 12", tuple(range(12))),
        ("7", (7,)),
    ],
)
def test_layer_indices(selector: str | list[int], indices: tuple[int, ...]) -> None:
    assert layer_indices(selector, 12) == indices


@pytest.mark.parametrize("selector", ["12", [12], "-13", "last 13", "first 13", "0-12", "0-99999", [0, 99999]])
def test_layers_that_do_not_exist(selector: str | list[int]) -> None:
    with pytest.raises(PlanError) as caught:
        layer_indices(selector, 12)
    assert caught.value.hint == "the layers are 0 to 11 (or -12 to -1 from the end)"


def test_no_layers_at_all() -> None:
    assert layer_indices("all", 0) == ()
    with pytest.raises(PlanError, match="does not exist"):
        layer_indices("first 1", 0)


@pytest.mark.parametrize("selector", ["5-3", "some", "first 0", [True], [2.5], "1--2", "0-999999999", [10**9]])
def test_what_is_no_selector(selector: str) -> None:
    with pytest.raises(SpecError):
        layer_indices(selector, 12)
