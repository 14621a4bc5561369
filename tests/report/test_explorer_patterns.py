"""The page's own reader of regular expressions, in a real browser: it means what the spec means, or refuses in words."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from headless import NEEDS_BROWSER, drive

from surgery.architecture import Site
from surgery.errors import SpecError
from surgery.planning import outline
from surgery.planning.inventory import Inventory
from surgery.planning.make import Anatomy
from surgery.registry import load_registry
from surgery.report.explorer import build_page
from surgery.spec import compile_pattern

pytestmark = NEEDS_BROWSER

MATCH = """
return %s.map((pattern) => {
  try {
    const test = view.explorer.compilePattern(pattern, view.explorer.model.data.classes, 1000);
    return %s.map((name) => test(name));
  } catch (error) {
    if (!(error instanceof view.explorer.Refusal)) throw error;
    return error.message;
  }
});
"""
READ = [
    "a", "abc|abd", "a*", "a+?b", "a??b", "a{2}", "a{,3}", "a{2,}", "a{0}", "a{1,2}?b", "(a|b)*?c", "(?P<x>a)(?<y>b)", "(|a)+",
    "(?:a*)*b", "(?:)*", "a|", "^a$", "a$\n", r"a\Z", r"\Aa", r"a\b.*", r"\Ba.*", r"\B", r"\b", r".*\b", "[]a]+", "[^]a]+", "[a-]+",
    "[--a]", r"[\w-]+", r"[\]\-\\^]+", "[^^]", "[.]", r"\.\-\_\/", r"\w+", r"\W+", r"\d+", r"\D+", r"\s", r"\S+", r"[\s\S]*", ".",
    "(?s).", "(?s:.)", "(?i)AB|aC", "(?i)a|B", "(?i:k)eys", "(?i)[j-l]eys", "(?i)[^k]eys", "(?i)[A-z]", "(?a)\\w+", r"(?a:\w)\w*",
    "(?ai)k.*", r"(?i)\W.*", r"(?i)[\W]eys", "(?is)A.B", "(?=a)ab", "(?!a).+", "(?<=a)b", "a(?<=a)b", "a(?<!a)b", "(?<=^a)b|.b",
    "é.*", "[é-ü]+.*", r"[^\d]+", "(?i)s", "(?i)ß", "a#b", "a b", "(a)(b)(c)", "}", "]", "a}", "x{1}{", "((((a))))", "a-b",
    "(?i)İ", "\u212aeys", "٣", "(?:a|ab)(?:c|bcd)d*", "(?=)", "(?!)", r"[\n]", r"\t", "(?i)[x-z]|Q", "(?i)[H-J]", "(?i)[h-j]", "(?i)i", "(?i)I", "(?i)[^i]", "(?i)[^I]", "(?i)[R-T]", "(?ai)[h-j]",
]  # fmt: skip
REFUSED = [
    "a++", "a*+", "a{2}+", "(?>a)", r"(a)\1", "(?P<x>a)(?P=x)", "a**", "a{2}{3}", "*a", "(*FAIL)", "(?#c)", "(?-i:a)", "(?m)a",
    "(?x)a", "a(?i)b", "[[:alpha:]]", "[a&&b]", "[a--b]", r"[\b]", r"[\d-z]", r"\p{L}", r"\u0041", r"\z", r"\K", "(?(1)a)", "(?R)",
    "(", ")", "[", "[]", "a{3,1}", "a{999999999}", "(a{1000}){1000}", "a{", "\\", "(?<1>a)", r"\Q", "(?|a)", "[z-a]", "^*",
    "(?P<" + "n" * 40 + ">a)", "x" * 513, "(" * 21 + ")" * 21, "(a+)+$", ".*.*.*.*.*.*.*x", "\x01", "a\x85", "\ufeff", r"\é",
    "(?i)é", "(){99999}", "|{2}", "(?'n'a)", "[a-\\d]", "",
]  # fmt: skip
TEXTS = [
    "", "a", "b", "ab", "abc", "abd", "aab", "AB", "aC", "ac", "aa", "aaa", "aaaa", "a\n", "\n", "\r", "\u2028", " ", "\u00a0", "\x1c", "]",
    "a]", "-", "]-\\^", "^", ".", ".-_/", "9", "12", "٣", "é", "éa", "êa", "_", "keys", "Keys", "\u212aeys", "eys", "A\nB", "a.b", "a b",
    "a-b", "a#b", "}", "a}", "x{", "ß", "ẞ", "ſ", "s", "S", "İ", "ı", "i", "abcd", "\t", "Q", "q", "z", "[", "`", "\U0001f600", "x" * 120,
]  # fmt: skip


def _page_of_names(texts: Iterable[str]) -> str:
    """A page whose model has these texts as names, so that it knows their characters."""
    sites = [Site("other.x", "", None, text, "weight", (1,), "float32", "other") for text in dict.fromkeys(texts)]
    return build_page(outline(Inventory(None, "Names", "model", ()), sites, Anatomy(None, "")), load_registry())


def test_patterns_mean_what_the_spec_means_or_are_refused(tmp_path: Path) -> None:
    page = _page_of_names(TEXTS)
    # The control characters of YAML may stand in names; a slow pattern shows on a long one.
    texts = [*TEXTS, "a" * 64 + "b"]
    answers = drive(tmp_path, page, MATCH % (json.dumps([*READ, *REFUSED]), json.dumps(texts)))
    for pattern, answer in zip([*READ, *REFUSED], answers, strict=True):
        if pattern in REFUSED:
            assert isinstance(answer, str), pattern
            assert len(answer) > 10
            continue
        try:
            compiled = compile_pattern(pattern)
        except SpecError:
            assert isinstance(answer, str), pattern
            continue
        if isinstance(answer, str):
            assert "understood here" in answer or "\n" in pattern, f"{pattern!r} is refused: {answer}"
            continue
        wrong = [text for text, said in zip(texts, answer, strict=True) if said != compiled.fullmatch(text)]
        assert not wrong, f"{pattern!r} on {wrong}"


def _made_up(count: int) -> list[str]:
    draw = random.Random(20260)
    pieces = [*"abkKsSé.^$|?*+()[]{}-\\,", "a", "b", "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?i:", "(?i)", ")", ")", r"\w", r"\W", r"\d",
              r"\b", r"\B", "[^", "[a-k]", "{2}", "{,2}", "{1,}", ".*", r"\.", r"\Z", r"\s"]  # fmt: skip
    return ["".join(draw.choices(pieces, k=draw.randint(1, 9))) for _ in range(count)]


def test_made_up_patterns_mean_the_same(tmp_path: Path) -> None:
    page = _page_of_names(TEXTS)
    patterns = _made_up(6000)
    answers = drive(tmp_path, page, MATCH % (json.dumps(patterns), json.dumps(TEXTS)))
    agreed = 0
    for pattern, answer in zip(patterns, answers, strict=True):
        try:
            compiled = compile_pattern(pattern)
        except SpecError:
            assert isinstance(answer, str), f"{pattern!r} is no pattern of the spec's"
            continue
        if not isinstance(answer, str):
            wrong = [text for text, said in zip(TEXTS, answer, strict=True) if said != compiled.fullmatch(text)]
            assert not wrong, f"{pattern!r} on {wrong}"
            agreed += 1
    assert agreed > 500
