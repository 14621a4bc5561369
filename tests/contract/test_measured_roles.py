"""What weights were measured to do on small models is what plugins say of them, for every type that is described."""

from __future__ import annotations

import pytest

import surgery
from surgery import Architecture, Slice
from surgery.registry import Provenance, Registered, Registry
from surgery.testing.check_measured import compare_with_measured
from surgery.testing.tiny import classes_of

REGISTRY = surgery.load_registry()
FUSED = ("bloom", "falcon", "gpt2", "gpt_neox", "modernbert", "mpt", "phi3")
OTHERS = sorted(set(REGISTRY.architectures) - set(FUSED))
SETTINGS = {"dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}}}  # its own default cannot be called
LANGUAGE = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration")


def language_model(kind: str) -> str:
    """The class with a language model's head, or any."""
    classes = classes_of(kind)
    return next((name for name in classes if name.endswith(LANGUAGE)), classes[0])


def compare(kind: str, registry: Registry = REGISTRY) -> tuple[str, list[str]]:
    import transformers

    try:
        config = transformers.CONFIG_MAPPING[kind](**SETTINGS.get(kind, {}))
    except Exception as error:  # a type whose own defaults do not hold
        pytest.skip(f"{kind}: {error}")
    finding = compare_with_measured(kind, config, language_model(kind), registry)
    if finding.skipped:
        pytest.skip(f"{kind}: {finding.skipped}")
    return finding.note, [f"{problem.where}: {problem.what}" for problem in finding.problems]


@pytest.mark.parametrize("kind", FUSED)
def test_fused_weights_do_what_is_said(kind: str) -> None:
    note, problems = compare(kind)
    assert not problems
    measured, _, maps = note.removesuffix(" linear maps of a layer").partition(" of ")
    assert measured == maps


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_weights_do_what_is_said(kind: str) -> None:
    assert not compare(kind)[1]


@pytest.mark.parametrize(
    ("first", "second"), [("attention.query", "attention.key"), ("mlp.up", "mlp.down"), ("attention.value", "mlp.up")]
)
def test_exchanged_roles_are_found(first: str, second: str) -> None:
    bert = REGISTRY.architectures["bert"].value
    roles = {**bert.roles, first: bert.roles[second], second: bert.roles[first]}
    note, problems = compare("bert", _with(Architecture(("bert",), bert.base, bert.stacks, roles, bert.heads)))
    assert "6 of 6" in note
    assert len(problems) == 2
    assert f"it is described as {first}, and does what {second} does" in " ".join(problems)


def test_exchanged_parts_are_found() -> None:
    def third(start: int) -> Slice:
        return Slice("*.attn.c_attn", (3, -1), 0, start, 1, 1)

    gpt2 = REGISTRY.architectures["gpt2"].value
    roles = {**gpt2.roles, "attention.query": third(2), "attention.value": third(0)}
    _, problems = compare("gpt2", _with(Architecture(("gpt2",), gpt2.base, gpt2.stacks, roles, gpt2.heads, True)))
    expected = "the rows described as attention.query and attention.value are not the ones that do this"
    assert len(problems) == 1 and problems[0].endswith(expected)


def _with(architecture: Architecture) -> Registry:
    here = Provenance("test", "given in Python", "")
    table = {kind: Registered(architecture, here) for kind in architecture.types}
    return Registry(REGISTRY.adapters, table, REGISTRY.models, {}, {})
