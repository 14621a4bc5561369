"""The outline of a model: bytes counted once, layers folded by facts, names whole wherever the layers' list is."""

from __future__ import annotations

import pytest

from surgery.architecture import Architecture, Part, Site
from surgery.planning import outline, render_outline
from surgery.planning.fold import fold, place, ranges
from surgery.planning.inventory import Inventory, ParameterEntry
from surgery.planning.make import Anatomy
from surgery.planning.render_outline import cut_of
from surgery.planning.sites import sites_of


def shown(architecture: Architecture | None, *entries: ParameterEntry) -> list[str]:
    found = Inventory("toy", "Toy", "model", entries)
    return render_outline(outline(found, sites_of(found, architecture), Anatomy(architecture, "toy"))).splitlines()


def weight(path: str, *shape: int, dtype: str = "float32") -> ParameterEntry:
    return ParameterEntry(path, "weight", shape or (2, 2), dtype, "linear")


def test_experts_of_the_layers_own_number_do_not_unfold_it() -> None:
    architecture = Architecture(("toy",), "", {"decoder": "layers"}, {"moe.experts.up": "*.experts.up"})
    lines = shown(architecture, *(weight(f"layers.{layer}.experts.{one}.up") for layer in range(4) for one in range(4)))
    assert lines[1] == "  decoder 0-3 (4 layers), 256 B, 64 B each: layers.*"
    assert len(lines) == 2 + 4


def test_names_are_whole_where_layers_are_counted_through_lists() -> None:
    architecture = Architecture(("toy",), "", {"decoder": "blocks.*.layers"}, {"mlp.up": "*.up"})
    lines = shown(architecture, *(weight(f"blocks.{block}.layers.{one}.up") for block in range(2) for one in range(2)))
    assert sum(line.endswith("blocks.1.layers.0.up.weight") for line in lines) == 1
    assert sum(line.endswith("blocks.1.layers.1.up.weight") for line in lines) == 1


def test_several_dtypes_stand_in_a_column() -> None:
    lines = shown(None, weight("a"), weight("b", dtype="bfloat16"))
    assert lines[0] == "Toy [toy], 8 parameters, 24 B, from model"
    assert lines[1:] == [
        "         16 B  other  2x2  linear  float32   a.weight",
        "          8 B  other  2x2  linear  bfloat16  b.weight",
    ]


def test_01_is_not_the_layer_1() -> None:
    sites = [Site(f"other.m.{name}", "", None, f"m.{name}", "weight", (2,), "float32", "other") for name in ("1", "01")]
    assert [(place(site).layer, place(site).name) for site in sites] == [(1, "m.*.weight"), (None, "m.01.weight")]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (None, ""),
        (Part(0, (3, 16), 0, 1, 1), "[16:32]"),
        (Part(1, (3, 16), 0, 2, 1), "[:, 32:48]"),
        (Part(0, (2, 3, 4), 1, 1, 1), "[4:8 of every 12]"),
        (Part(1, (-1 + 9, 2), 1, 0, 1), "[:, 0:1 of every 2]"),
    ],
)
def test_a_part_is_told_by_its_entries(part: Part | None, words: str) -> None:
    assert cut_of(part) == words
    if part is not None:
        chosen = part.indices()
        first = int(words.strip("[]").removeprefix(":, ").partition(":")[0])
        assert chosen[0] == first


def test_equal_layers_fold_wherever_they_stand() -> None:
    sites = [Site("x", "s", layer, f"l.{layer}", "weight", (2,), "float32", "other") for layer in range(5)]
    groups = fold([(place(site), site.layer == 2) for site in sites])
    assert [group.layers for group in groups] == [[0, 1, 3, 4], [2]]
    assert ranges([0, 1, 3, 4]) == "0-1, 3-4"
