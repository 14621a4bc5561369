"""The slice primitive against numpy, the vocabulary, and sites."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery import Architecture, Part, Site, Slice, When
from surgery.architecture import ROLES, is_role
from surgery.errors import PlanError, PluginError
from surgery.planning.inventory import Inventory, ParameterEntry
from surgery.planning.sites import sites_of


@st.composite
def parts(draw: st.DrawFn) -> Part:
    view = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    dim = draw(st.integers(0, len(view) - 1))
    start = draw(st.integers(0, view[dim] - 1))
    return Part(0, view, dim, start, draw(st.integers(1, view[dim] - start)))


def by_numpy(part: Part) -> list[int]:
    cut = [slice(None)] * len(part.view)
    cut[part.dim] = slice(part.start, part.start + part.length)
    whole = np.arange(math.prod(part.view)).reshape(part.view)
    return [int(index) for index in whole[tuple(cut)].flatten()]


@settings(max_examples=300, deadline=None)
@given(parts())
def test_indices_are_numpys(part: Part) -> None:
    expected = by_numpy(part)
    assert list(part.indices()) == expected
    assert part.size == len(expected)


@settings(max_examples=300, deadline=None)
@given(parts())
def test_a_span_is_told_exactly_for_contiguous_runs_in_one_block(part: Part) -> None:
    indices = by_numpy(part)
    span = part.span()
    if span is not None:
        assert indices == list(range(span[0], span[0] + span[1]))
    elif math.prod(part.view[: part.dim]) == 1:
        raise AssertionError("a contiguous run was not told as a span")


def site(name: str, shape: tuple[int, ...], cut: Slice | None, host: str = "linear") -> tuple[Site, ...]:
    path, _, parameter = name.rpartition(".")
    entry = ParameterEntry(path, parameter, shape, "float32", host)
    roles = {"attention.query": cut if cut is not None else path}
    return sites_of(Inventory("x", "", "model", (entry,)), Architecture(("x",), "", {}, roles))


def test_per_head_interleaving() -> None:
    """Falcon-like: for each of 2 groups 3 queries, one key, one value of width 4; the keys are not contiguous."""
    (found,) = site("qkv.weight", (40, 8), Slice("qkv", view=(2, 5, 4), dim=1, start=3, length=1))
    assert found.shape == (8, 8)
    assert found.slice is not None
    assert found.slice.indices() == (12, 13, 14, 15, 32, 33, 34, 35)
    assert found.slice.span() is None


def test_the_bias_of_a_fused_weight_is_cut_on_its_only_axis() -> None:
    (found,) = site("c.bias", (9,), Slice("c", view=(3, -1), start=2, axis=1), "conv1d")
    assert found.slice is not None
    assert (found.slice.axis, found.slice.span(), found.shape) == (0, (6, 3), (3,))


@pytest.mark.parametrize(
    "cut",
    [
        Slice("c", view=(4, -1)),
        Slice("c", view=(2, 5)),
        Slice("c", view=(3, 3), start=3),
        Slice("c", view=(3, 3), start=2, length=2),
        Slice("c", view=(3, 3), length=0),
        Slice("c", view=(0, -1)),
    ],
)
def test_a_layout_that_does_not_fit_is_an_error(cut: Slice) -> None:
    with pytest.raises(PlanError, match="cannot be seen as"):
        site("c.weight", (9, 2), cut)


@pytest.mark.parametrize(
    "cut", [Slice("c", view=(3, 3), dim=2), Slice("c", view=(9,), axis=2), Slice("c", view=(-1, -1))]
)
def test_a_layout_that_makes_no_sense_is_an_error(cut: Slice) -> None:
    with pytest.raises(PlanError, match="cannot be seen as"):
        site("c.weight", (9, 2), cut)


def test_shapes_and_names_of_sites() -> None:
    linear = Site("mlp.up", "decoder", 3, "a.b", "weight", (8, 4), "float32", "linear")
    assert (linear.name, linear.key, linear.fan_out, linear.fan_in, linear.size) == (
        "a.b.weight",
        "a.b.weight",
        8,
        4,
        32,
    )
    conv = Site("mlp.up", "decoder", 3, "a.b", "weight", (4, 8), "float32", "conv1d")
    assert (conv.fan_out, conv.fan_in, conv.is_transposed, conv.is_matrix) == (8, 4, True, True)
    table = Site("embedding.token", "", None, "e", "weight", (50, 8), "float32", "embedding")
    assert (table.fan_out, table.fan_in) == (8, 50)
    bias = Site("mlp.up", "decoder", 3, "", "bias", (8,), "float32", "linear", Part(0, (2, 4), 0, 1, 1))
    assert (bias.name, bias.key, bias.fan_out, bias.fan_in, bias.is_matrix) == ("bias", "bias:mlp.up", 8, 1, False)


def test_the_vocabulary_is_closed() -> None:
    assert "attention.query" in ROLES
    assert "norm.mlp.post" in ROLES
    assert is_role("other.body.rotary")
    assert not is_role("attention.qkv")
    with pytest.raises(PluginError) as caught:
        Architecture(("x",), "", {}, {"attention.qery": "q"})
    assert caught.value.what == "unknown role 'attention.qery'"
    assert "attention.query" in caught.value.hint


def test_types_must_be_a_tuple() -> None:
    with pytest.raises(PluginError, match="types must be a tuple of names"):
        Architecture("bert", "", {}, {})  # type: ignore[arg-type]


def test_an_embedding_that_is_read_and_not_called_is_a_matrix() -> None:
    """Its lookups are not all that it does, so an adapter must change the table and not their result."""
    entry = ParameterEntry("table", "weight", (9, 2), "float32", "embedding")

    def host(**settings: object) -> str:
        inventory = Inventory("x", "", "model", (entry,), settings=settings)
        uncalled = (When("table", {"legacy": False}),)
        (found,) = sites_of(inventory, Architecture(("x",), "", {}, {"embedding.token": "table"}, uncalled=uncalled))
        assert found.is_matrix
        return found.host

    assert host(legacy=False) == "matrix"
    assert host(legacy=True) == "embedding"
    assert host() == "embedding"


@pytest.mark.parametrize(
    ("role", "shape", "host"),
    [
        ("embedding.relative", (8, 2), "embedding"),
        ("embedding.position", (1, 5, 8), "other"),
        ("embedding.patch", (8, 3, 4, 4), "other"),
        ("embedding.projection", (8, 4), "linear"),
    ],
)
def test_hosts_that_are_guessed_from_a_header(role: str, shape: tuple[int, ...], host: str) -> None:
    entry = ParameterEntry("a", "weight", shape, "float32", "")
    (found,) = sites_of(Inventory("x", "", "headers", (entry,)), Architecture(("x",), "", {}, {role: "a"}))
    assert found.host == host
