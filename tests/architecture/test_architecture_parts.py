"""The slice primitive against numpy, the vocabulary, and sites."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery import Architecture, Part, Site, Slice, When
from surgery.architecture import ROLES, is_role
from surgery.errors import PlanError, PluginError
from surgery.planning.inventory import Inventory, ParameterEntry
from surgery.planning.sites import plain_names, sites_of


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
    with pytest.raises(PlanError, match=r"cannot be seen as|has no entries"):
        site("c.weight", (9, 2), cut)


def test_a_slice_of_experts_cuts_each_expert_and_not_their_number() -> None:
    entry = ParameterEntry("c", "weight", (4, 6, 2), "float32", "experts")

    def cut(axis: int) -> Site:
        roles = {"moe.experts.gate": Slice("c", view=(2, -1), axis=axis)}
        return sites_of(Inventory("x", "", "model", (entry,)), Architecture(("x",), "", {}, roles))[0]

    assert cut(1).shape == (4, 3, 2)
    with pytest.raises(PlanError, match="axis 0 gives moe.experts.gate some of the experts") as caught:
        cut(0)
    assert "axis=1 of (experts, fan_out, fan_in)" in str(caught.value.hint)


@pytest.mark.parametrize("cut", [Slice("c", view=(9,), axis=2), Slice("c", view=(-1, -1))])
def test_a_layout_that_makes_no_sense_is_an_error(cut: Slice) -> None:
    with pytest.raises(PlanError, match="cannot be seen as"):
        site("c.weight", (9, 2), cut)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        (Slice("c", view=(3, 3), dim=2), "has no dimension 2"),
        (Slice("c", view=()), "has no dimension 0"),
        (Slice("c", view=("heads; 1", 3)), "is no count"),
        (Slice("c", view=("heads()", 3)), "is no count"),
        (Slice("c", view=(2.5, 3)), "is no count"),  # type: ignore[arg-type]
        (3, "is no path"),
        ("*.up_*.b", "has a star inside a name"),
        ("decoder:*b", "has a star inside a name"),
    ],
)
def test_what_is_no_place_is_refused(place: object, what: str) -> None:
    with pytest.raises(PluginError, match=what):
        Architecture(("x",), "", {}, {"attention.query": place})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "roles",
    [
        {"attention.query": Slice("c", view=(3, -1)), "attention.key": Slice("c", view=(3, -1))},
        {"attention.query": Slice("c", view=(3, -1), length=2), "attention.key": Slice("c", view=(3, -1), start=1)},
        {"attention.query": Slice("c", view=(3, -1)), "attention.key": "c"},
        {"attention.query": "c", "attention.key": "c"},
    ],
)
def test_an_element_has_one_role(roles: dict[str, object]) -> None:
    entry = ParameterEntry("c", "weight", (9, 2), "float32", "linear")
    with pytest.raises(PluginError, match="has two roles"):
        sites_of(Inventory("x", "", "model", (entry,)), Architecture(("x",), "", {}, roles))  # type: ignore[arg-type]


def test_counts_come_from_the_configuration_and_then_from_the_defaults() -> None:
    cut = Slice("c", view=("heads + 2 * groups", -1), start="heads", length="groups")
    found = Architecture(("x",), "", {}, {"attention.key": cut}, defaults={"groups": "heads // 2"})
    entry = ParameterEntry("c", "weight", (16, 2), "float32", "linear")
    for config, indices in (({"heads": 4}, tuple(range(8, 12))), ({"heads": 4, "groups": 2}, tuple(range(8, 12)))):
        site = sites_of(Inventory("x", "", "model", (entry,), {}, config), found)[0]
        assert site.slice is not None
        assert site.slice.indices() == indices
    with pytest.raises(PlanError, match="does not say 'heads'"):
        sites_of(Inventory("x", "", "model", (entry,), {}, {"heads": True}), found)


@pytest.mark.parametrize("part", [{"heads": 4}, SimpleNamespace(heads=4)], ids=["file", "live"])
def test_a_count_may_be_of_a_part_of_the_configuration(part: object) -> None:
    cut = Slice("c", view=("attn.heads + 2 * attn.groups", -1), start="attn.heads", length="attn.groups")
    found = Architecture(("x",), "", {}, {"attention.key": cut}, defaults={"attn.groups": 2})
    entry = ParameterEntry("c", "weight", (16, 2), "float32", "linear")
    (site,) = sites_of(Inventory("x", "", "model", (entry,), {}, {"attn": part}), found)
    assert site.slice is not None and site.slice.indices() == tuple(range(8, 12))
    for config in ({}, {"attn": 3}, {"heads": 4}):
        with pytest.raises(PlanError, match=r"does not say 'attn\.heads'"):
            sites_of(Inventory("x", "", "model", (entry,), {}, config), found)
    with pytest.raises(PluginError, match="is no count"):
        Architecture(("x",), "", {}, {"attention.key": Slice("c", view=("heads().groups", -1))})


def test_a_condition_chooses_between_layouts() -> None:
    roles = {
        "attention.query": (
            When(Slice("c", view=(3, -1)), {"interleaved": False}),
            When(Slice("c", view=(-1, 3), dim=1), {"interleaved": True}),
        )
    }
    entry = ParameterEntry("c", "weight", (6, 2), "float32", "linear")
    architecture = Architecture(("x",), "", {}, roles, defaults={"interleaved": False})
    for config, indices in (({}, (0, 1)), ({"interleaved": True}, (0, 3))):
        site = sites_of(Inventory("x", "", "model", (entry,), {}, config), architecture)[0]
        assert site.slice is not None
        assert site.slice.indices() == indices


def test_lists_of_layers_in_lists_are_counted_through() -> None:
    architecture = Architecture(
        ("x",), "", {"encoder": "groups.*.layers"}, {"mlp.up": "*.up", "mlp.down": "encoder:*.down"}
    )
    entries = tuple(
        ParameterEntry(f"groups.{group}.layers.{layer}.{name}", "weight", (2, 2), "float32", "linear")
        for group in (0, 1, 10)
        for layer in (0, 1)
        for name in ("up", "down")
    )
    sites = sites_of(Inventory("x", "", "model", entries), architecture)
    assert [(site.layer, site.role) for site in sites] == [
        (layer, role) for layer in range(6) for role in ("mlp.up", "mlp.down")
    ]


def test_a_star_inside_a_layer_stands_for_any_index() -> None:
    roles = {"norm.query": "*.a.norms.*", "norm.key": "*.a.norms.1", "mlp.up": "up.*", "mlp.down": "x:*.b.*.c.weight"}
    names = ("l.0.a.norms.0.weight", "l.0.a.norms.11.bias", "l.0.a.norms.1.weight", "up.3.weight", "l.7.b.2.c.weight",
             "l.7.a.norms.x.weight", "l.7.a.norms.0.0.weight", "l.7.b.2.c.bias", "l.0.a.norms.de_DE.weight",
             "l.0.a.norms.de_de.weight")  # fmt: skip
    entries = tuple(ParameterEntry(*name.rpartition(".")[::2], (4,), "float32", "norm") for name in names)
    found = sites_of(Inventory("x", "", "model", entries), Architecture(("x",), "", {"x": "l"}, roles))
    assert [site.role if not site.role.startswith("other.") else "" for site in found] == [
        "norm.query", "norm.query", "norm.key", "mlp.up", "mlp.down", "", "", "", "norm.query", "",
    ]  # fmt: skip


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


def test_a_plain_number_accepts_another_width_and_mislabels() -> None:
    """Why docs/write-an-architecture.md says to take sizes from the configuration: nothing can tell these apart."""
    heads_of_64 = Slice("c", view=(-1, 3, 64), dim=1, start=1)
    (found,) = site("c.weight", (2 * 3 * 128, 8), heads_of_64)  # query, key and value of 128 rows each, twice
    assert found.slice is not None
    assert found.slice.indices()[:64] == tuple(range(64, 128)), "the second half of the first head's query"


def test_the_layouts_of_the_guide() -> None:
    """Groups of queries before their key and value where the configuration says so, else thirds."""
    queries = "num_attention_heads // num_key_value_heads"
    cuts = (
        When(
            Slice("c", ("num_key_value_heads", f"{queries} + 2", -1), dim=1, length=queries),
            {"grouped": True},
        ),
        When(Slice("c", view=(3, -1)), {"grouped": False}),
    )
    entry = ParameterEntry("c", "weight", (24, 4), "float32", "linear")
    architecture = Architecture(("x",), "", {}, {"attention.query": cuts})
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2}
    indices = {}
    for grouped in (True, False):
        inventory = Inventory("x", "", "model", (entry,), {}, {**sizes, "grouped": grouped})
        (found,) = sites_of(inventory, architecture)
        indices[grouped] = list(found.slice.indices()) if found.slice else []
    groups = np.arange(24).reshape(2, 4, 3)
    assert indices[True] == groups[:, :2].ravel().tolist()
    assert indices[False] == list(range(8))


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


def test_a_norms_own_parameter_is_known_from_a_header_by_what_holds_it() -> None:
    entries = tuple(ParameterEntry(path, "temp", (4,), "float32", "") for path in ("qk_norm", "scale"))
    roles = {"norm.key": ("qk_norm", "scale")}
    found = sites_of(Inventory("x", "", "headers", entries), Architecture(("x",), "", {}, roles))
    assert [site.host for site in found] == ["norm", "other"]


# What is known and has no role ----------------------------------------------------------------------------------------


def test_the_rest_of_a_fused_weight_has_no_role_knowingly() -> None:
    entry = ParameterEntry("layers.0.q", "weight", (8, 4), "float32", "linear")
    other = ParameterEntry("layers.0.q", "A_log", (8,), "float32", "other")
    taken = Inventory("x", "", "model", (entry, other))
    query, gate = (Slice("*.q.weight", (2, 2, -1), 1, start) for start in (0, 1))
    made = Architecture(("x",), "", {"decoder": "layers"}, {"attention.query": query}, plain=(gate,))
    first, second, third = sites_of(taken, made)
    assert (first.role, second.role, third.role) == ("attention.query", "other.layers.0.q", "other.layers.0.q")
    assert first.slice is not None and second.slice is not None
    assert (first.slice.indices(), second.slice.indices()) == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert second.key == "layers.0.q.weight:other.layers.0.q"
    assert plain_names(taken, made) == {"layers.0.q.weight"}
    whole = Architecture(("x",), "", {"decoder": "layers"}, {"attention.query": query}, plain=(gate, "*.q.A_log"))
    assert plain_names(taken, whole) == {"layers.0.q.weight", "layers.0.q.A_log"}
    assert plain_names(taken, None) == frozenset()


def test_what_is_plain_may_depend_on_the_layer_and_the_configuration() -> None:
    entries = tuple(
        ParameterEntry(f"layers.{n}.{name}", "w", (2,), "float32", "other")
        for n, name in ((0, "a"), (1, "b"), (1, "a"))
    )
    places = (When("*.a", beside="*.b"), When("*.b", {"size": 3}))
    made = Architecture(("x",), "", {"decoder": "layers"}, {}, plain=places)
    assert plain_names(Inventory("x", "", "model", entries), made) == {"layers.1.a.w"}
    assert plain_names(Inventory("x", "", "model", entries, {}, {"size": 3}), made) == {"layers.1.a.w", "layers.1.b.w"}


def test_a_role_and_none_at_once_are_a_mistake() -> None:
    entry = ParameterEntry("q", "weight", (8, 4), "float32", "linear")
    for plain in ("q", Slice("q", (2, -1))):
        made = Architecture(("x",), "", {}, {"attention.query": Slice("q", (2, -1))}, plain=(plain,))
        with pytest.raises(PluginError, match="has two roles"):
            sites_of(Inventory("x", "", "model", (entry,)), made)
    with pytest.raises(PluginError, match="star inside a name"):
        Architecture(("x",), "", {}, {}, plain=("*.q*",))
    for path, beside in (("shared", "layers.*.a"), ("layers.*.shared", "a"), ("layers.*.b.*.shared", "layers.*.a")):
        with pytest.raises(PluginError, match="not of one layer"):
            Architecture(("x",), "", {}, {}, shared={path: (beside, 1)})
