"""For all specs and all bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgery.errors import SpecError
from surgery.spec import Rule, Spec, load_spec, parse_spec

# What looks like something else in one YAML version or another.
TRICKY = [
    "1e-3",
    "0o17",
    "0x1F",
    "017",
    "089",
    "1_000",
    "+.5",
    ".5",
    "5.",
    "no",
    "on",
    "~",
    "",
    "null",
    "<<",
    "=",
    "12:30",
    "-",
]
TRICKY += [
    "2024-01-01",
    ".inf",
    ".nan",
    "!a",
    "&a",
    "*a",
    "a: b",
    " a",
    "a ",
    "#",
    "'",
    '"',
    "[",
    "{",
    "|",
    ">",
    "%",
    "@",
    "`",
]
TRICKY += [
    "\U0001f600",
    "\x85",
    "\u2028",
    "\ufeff",
    "a\nb",
    "a\r\nb",
    "\t",
    "\\",
    "?",
    "---",
    "...",
    "é" * 200,
    "True",
    "0b11",
]
CORE = {*Rule.model_fields}

words = st.sampled_from([word for word in TRICKY if word != "\x85"]) | st.text(
    st.characters(exclude_categories=("Cs", "Cc")), max_size=30
)
full_words = words.filter(bool)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
rules = st.builds(
    lambda keys, options: Rule(**{**options, **keys}),
    st.fixed_dictionaries(
        {"adapter": full_words, "role": st.sampled_from([r"attention\.(query|value)", ".*", "a: b|#c", "[0-9]{1,3}"])},
        optional={
            "target": st.just(r"layer\.\d+"),
            "exclude": st.just({"role": r"head\..*"}),
            "layers": st.sampled_from(["all", "0-5", "last 4", (0, 3, -1), "0-2,5"]),
            "expect": st.integers(1, 100),
            "tied": st.sampled_from(["error", "share", "untie"]),
            "allow_oversized": st.booleans(),
        },
    ),
    st.dictionaries(words.filter(lambda word: word not in CORE), values, max_size=4),
)
trainings = st.fixed_dictionaries(
    {"learning_rate": st.floats(1e-9, 10), "steps": st.integers(1, 10**6)},
    optional={
        "weight_decay": st.floats(0, 1),
        "warmup": st.floats(0, 0.99),
        "max_grad_norm": st.none() | st.floats(1e-300, 1e300),
        "groups": st.just([{"role": "head", "learning_rate": 1e-5}]),
        "log_to": st.just(["wandb"]),
    },
)
specs = st.builds(
    Spec,
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
    seed=st.integers(0, 2**63 - 1),
    rules=st.lists(rules, min_size=1, max_size=3),
    model=st.none() | full_words,
    data=st.none()
    | st.fixed_dictionaries({"columns": st.dictionaries(words, full_words, max_size=3)}, optional={"name": full_words}),
    training=st.none() | trainings,
)


@settings(max_examples=150, deadline=None)
@given(specs)
def test_yaml_loads_back_equal(spec: Spec) -> None:
    text = spec.to_yaml()
    again = parse_spec(text)
    assert again == spec
    assert again.to_yaml() == text
    assert again.canonical_json() == spec.canonical_json()
    assert parse_spec(spec.canonical_json()) == spec


@settings(max_examples=100, deadline=None)
@given(specs)
def test_other_readers_read_the_same(spec: Spec) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    assert Spec(**yaml.safe_load(spec.to_yaml())) == spec
    written = yaml.safe_load(spec.to_yaml())["rules"][0]
    for key, value in spec.rules[0].options.items():
        assert written[key] == plain(value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b"\xff\xfe")
@example(b"a: \xc3\xa9\n\xe9")
def test_any_bytes_are_a_spec_or_a_spec_error(tmp_path_factory: Any, data: bytes) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "junk.yaml"
    path.write_bytes(data)
    try:
        load_spec(path)
    except SpecError as error:
        assert str(path) in error.where


SNIPPETS = [
    "version: 1",
    "name: a",
    "rules:",
    "  - ",
    "role: x",
    "adapter: full",
    "\n",
    "{",
    "}",
    "[",
    "]",
    ": ",
    ", ",
    "&a ",
    "*a",
]
SNIPPETS += [
    "<<: ",
    "!!int ",
    "? ",
    "- ",
    "|\n",
    ">-\n ",
    "'",
    '"',
    "017",
    ".inf",
    "null",
    "#",
    "\t",
    "%YAML 1.1\n",
    "---",
    "\\x",
]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=3), max_size=25).map("".join))
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    try:
        parse_spec(text, "f")
    except SpecError as error:
        assert all(problem.where.startswith("f") for problem in error.problems)
