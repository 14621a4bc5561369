"""Forgetting at the end and at equal learning: curves of known truth, and the checklist."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from synthetic import make_records, make_study, make_summary

from surgery.errors import SpecError
from surgery.study import StudySpec, Summary
from surgery.study.cells import final_cells
from surgery.study.forgetting.along import _chosen
from surgery.study.forgetting.checks import probe_checks
from surgery.study.forgetting.matched import Place, common_level, reached
from surgery.study.spec import Forgetting
from surgery.study.tables import tables
from surgery.study.words import sentence

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
DATA = {"test": "known.jsonl"}
# Along each arm: validation accuracy, and by how much the loss on known text has risen.
CURVES: dict[str, tuple[list[float], list[float]]] = {
    "full": ([0.5, 0.6, 0.7, 0.8, 0.9], [0.0, 0.1, 0.2, 0.3, 0.4]),
    "lora": ([0.5, 0.55, 0.6, 0.7, 0.8], [0.0, 0.02, 0.04, 0.06, 0.08]),
    "bias": ([0.5, 0.8, 0.85, 0.85, 0.85], [0.0, -0.1, -0.2, -0.3, -0.4]),
}
NORMS = {"full": 4.0, "lora": 2.0, "bias": 1.0}


def test_a_curve_is_straight_between_its_points() -> None:
    assert reached([0.0, 1.0, 3.0], 0.5) == Place(0, 0.5)
    assert reached([0.0, 1.0, 3.0], 1.0) == Place(0, 1.0)
    assert reached([0.0, 1.0, 3.0], 2.5) == Place(1, 0.75)
    assert reached([0.4, 0.2, 0.6], 0.4) == Place(0, 0.0)  # at once, whatever comes after
    assert reached([0.1, 0.5, 0.3, 0.7], 0.6).index == 2  # not on the way down
    with pytest.raises(ValueError, match="never reaches"):
        reached([0.1, 0.2], 0.3)
    assert common_level({"a": [0.1, 0.9, 0.7], "b": [0.2, 0.6, 0.8]}) == 0.8
    assert Place(1, 0.25).of([0.0, 4.0, 8.0]) == 5.0
    assert Place(0, 0.5).of([np.zeros(2), np.ones(2)]).tolist() == [0.5, 0.5]
    assert Place(1, 0.0).of([0.0, 4.0]) == 4.0  # the last point has no next one


def lost(
    arm: str, seed: int, items: int = 50, *, kind: str = "loss", noise: float = 0.0, common: float = 0.0, **changes: Any
) -> Any:
    """What a run might say: `CURVES`, on items that differ from each other and hardly between arms."""
    ease = np.random.default_rng(3).random(items)
    own = np.random.default_rng([seed, sum(map(ord, arm))])
    metric, risen = CURVES.get(arm, ([0.5], [0.0]))
    shares = SHARES if len(metric) > 1 else (1.0,)
    sign = -1 if kind == "retrieval" else 1
    hard = common * np.random.default_rng(4).normal(size=items)  # what every change forgets of an item
    curves = [2 + ease + sign * rise + noise * own.normal(size=items) + hard * bool(i) for i, rise in enumerate(risen)]
    points = [
        {
            "t": share,
            "metric": accuracy,
            "loss": 1 - accuracy,
            "score": float(values.mean()),
            "values": values.tolist(),
            "change": share * NORMS.get(arm, 0.0),
        }
        for share, accuracy, values in zip(shares, metric, curves, strict=True)
    ]
    probe = {"kind": kind, "score": "MRR" if sign < 0 else "loss", "unit": "MRR" if sign < 0 else "nats"}
    return {
        "before": float((2 + ease).mean()),
        "after": points[-1]["score"],
        "probe": {**probe, "greater_is_better": sign < 0, "chance": 0.1 if sign < 0 else 9.0, "why": ""},
        "weights": [1.0] * items,
        "values": (2 + ease).tolist(),
        "shared": {"texts": 50, "shared_texts": 0, "runs": 400, "shared_runs": 4},
        "base_norm": 10.0,
        "points": points,
        **changes,
    }


def summary_of(seeds: int = 3, study: StudySpec | None = None, **changes: Any) -> Summary:
    study = study or make_study(seeds, forgetting={"data": DATA})
    records = make_records(study, 100)
    for record in records:
        if record["phase"] == "final":
            record["forgetting"] = lost(record["arm"], record["seed"], **changes)
    return make_summary(study, records)


def test_arms_are_compared_where_all_have_learned_alike() -> None:
    found = summary_of().forgotten
    assert found is not None
    full, lora, bias = (found.arm(name) for name in ("full", "lora", "bias"))
    assert full and lora and bias
    # At their ends: 0.4 against 0.08. The most that all reach is LoRA's 0.8, where full tuning is at t = 0.75.
    assert full.forgotten.difference == pytest.approx(0.4)
    assert lora.against is not None
    assert lora.against.difference == pytest.approx(-0.32)
    for arm, share, forgot, relative in ((full, 0.75, 0.3, 0.3), (lora, 1.0, 0.08, 0.2), (bias, 0.25, -0.1, 0.025)):
        assert arm.matched is not None
        assert arm.matched.level == pytest.approx(0.8)
        assert arm.matched.t == pytest.approx(share)
        assert arm.matched.forgotten.difference == pytest.approx(forgot)
        assert arm.matched.relative == pytest.approx(relative)
    assert full.matched is not None
    assert full.matched.against is None
    assert lora.matched is not None
    assert lora.matched.against is not None
    assert lora.matched.against.difference == pytest.approx(-0.22)
    # Bias-only and full tuning alone reach 0.85: half way between full tuning's last points, and at bias-only's third.
    assert bias.pair is not None
    assert bias.pair.against is not None
    assert bias.pair.level == pytest.approx(0.85)
    assert bias.pair.t == pytest.approx(0.5)
    assert bias.pair.forgotten.difference == pytest.approx(-0.2)
    assert bias.pair.against.difference == pytest.approx(-0.2 - 0.35)
    assert full.pair is None
    # The largest change that all reach is bias-only's 1: a quarter of full tuning's, half of LoRA's.
    for arm, share, forgot in ((full, 0.25, 0.1), (lora, 0.5, 0.04), (bias, 1.0, -0.4)):
        assert arm.equal_change is not None
        assert arm.equal_change.level == pytest.approx(0.1)
        assert arm.equal_change.t == pytest.approx(share)
        assert arm.equal_change.forgotten.difference == pytest.approx(forgot)
    assert [point.t for point in full.points] == list(SHARES) * 3
    assert full.points[1].relative == pytest.approx(0.1)
    frozen = found.arm("frozen")
    assert frozen is not None
    assert frozen.matched is None
    assert frozen.forgotten.difference == 0
    assert found.left_out == {}


def test_a_rank_that_falls_is_forgotten_as_a_loss_that_rises() -> None:
    ranks, losses = summary_of(kind="retrieval").forgotten, summary_of().forgotten
    assert ranks is not None
    assert losses is not None
    for one, other in zip(ranks.arms, losses.arms, strict=True):
        assert one.forgotten.difference == pytest.approx(other.forgotten.difference)
        assert one.moved_up == other.moved_up
    assert summary_of(kind="retrieval").row("full").forgetting.mean == pytest.approx(0.4)  # type: ignore[union-attr]
    assert ranks.arms[0].first_before == 0.0
    assert losses.arms[0].first_before is None


def test_a_loss_to_learn_is_matched_at_the_lowest_that_all_reach() -> None:
    study = make_study(3, forgetting={"data": DATA})
    records = make_records(study, 100)
    for record in records:
        record["metric"] = {"name": "loss", "greater_is_better": False}
        record["majority"] = None
        if record["phase"] == "final":
            record["forgetting"] = lost(record["arm"], record["seed"])
            for point in record["forgetting"]["points"]:
                point["metric"] = 1 - point["metric"]
    found = make_summary(study, records).forgotten
    assert found is not None
    full = found.arm("full")
    assert full is not None
    assert full.matched is not None
    assert full.matched.level == pytest.approx(0.2)
    assert full.matched.t == pytest.approx(0.75)


def test_the_interval_counts_seeds_and_items_and_pairs_them() -> None:
    quiet, noisy = summary_of(5).forgotten, summary_of(5, noise=0.5).forgotten
    one = summary_of(1, noise=0.5).forgotten
    assert quiet is not None
    assert noisy is not None
    assert one is not None
    width = {name: f.arms[1].matched.against.interval for name, f in (("quiet", quiet), ("noisy", noisy), ("one", one))}  # type: ignore[union-attr]
    # Items differ by far more than 0.001 from each other, and alike in both arms: pairing takes that away.
    assert width["quiet"].high - width["quiet"].low < 1e-6
    assert 0.05 < width["noisy"].high - width["noisy"].low < 0.6
    assert width["one"].high > width["one"].low
    assert noisy.arms[1].matched.against.seeds == 5  # type: ignore[union-attr]
    assert noisy.arms[1].matched.against.items == 50  # type: ignore[union-attr]


def test_what_is_forgotten_of_an_item_by_all_arms_drops_out_of_differences() -> None:
    found = summary_of(3, common=1.0).forgotten
    assert found is not None
    lora = found.arm("lora")
    assert lora is not None
    assert lora.against is not None
    assert lora.forgotten.interval.high - lora.forgotten.interval.low > 0.3
    assert lora.against.interval.high - lora.against.interval.low < 1e-6
    assert lora.matched is not None
    assert lora.matched.against is not None
    assert lora.matched.against.interval.high - lora.matched.against.interval.low < 1e-6


def checks(summary: Summary) -> dict[str, tuple[str, str]]:
    return {check.name: (check.status, check.detail) for check in summary.checks}


def test_a_probe_that_training_improves_is_marked() -> None:
    summary = summary_of()
    status, detail = checks(summary)["forgetting probe measures forgetting"]
    assert status == "warn"
    assert detail.startswith("moved up: training improves it (bias only by 0.400 [0.400, 0.400] nats)")
    assert "the base's loss is 2." in detail
    assert summary.forgotten is not None
    assert [one.arm for one in summary.forgotten.arms if one.moved_up] == ["bias"]
    assert summary.blocked == ""


def test_better_by_less_than_its_interval_is_not_moved_up() -> None:
    curves = dict(CURVES)
    try:
        CURVES["bias"] = (curves["bias"][0], [0.0, 0.0, 0.0, 0.0, -0.02])
        status, detail = checks(summary_of(noise=0.5))["forgetting probe measures forgetting"]
    finally:
        CURVES.update(curves)
    assert (status, detail) == ("pass", detail)
    assert "no arm is better after training" in detail


def test_a_base_that_knows_nothing_has_nothing_to_forget() -> None:
    probe = lost("full", 1)["probe"]
    curves = dict(CURVES)
    try:
        CURVES["bias"] = (curves["bias"][0], [0.0] * 5)
        status, detail = checks(summary_of(probe={**probe, "chance": 2.0}))["forgetting probe measures forgetting"]
    finally:
        CURVES.update(curves)
    assert status == "warn"
    assert "there is nothing to forget" in detail


def test_a_probe_that_was_trained_on_is_a_red_line_that_blocks_no_verdict() -> None:
    name = "forgetting probe apart from the task"
    apart = checks(summary_of())
    assert apart[name] == ("pass", "0 of its 50 texts stand in the task's rows, and 1 % of its runs of 8 words")
    shared = {"texts": 50, "shared_texts": 2, "runs": 400, "shared_runs": 40}
    summary = summary_of(shared=shared)
    assert checks(summary)[name][0] == "fail"
    assert "2 of its 50 texts" in checks(summary)[name][1]
    assert summary.blocked == ""
    assert checks(summary_of(shared={**shared, "shared_texts": 0}))[name][0] == "warn"


def test_arms_that_cannot_be_matched_are_named() -> None:
    summary = summary_of(
        study=make_study(3, forgetting={"data": DATA, "along": []}), points=[lost("x", 1)["points"][0]]
    )
    assert summary.forgotten is not None
    assert set(summary.forgotten.left_out.values()) == {"only its end was measured"}
    assert checks(summary)["forgetting at equal learning"][0] == "none"
    study = make_study(3, forgetting={"data": DATA})
    records = make_records(study, 100)
    for record in records:
        if record["phase"] == "final":
            record["forgetting"] = lost(record["arm"], record["seed"])
            if record["arm"] == "bias":
                record["diverged"] = True
    summary = make_summary(study, records)
    assert summary.forgotten is not None
    assert summary.forgotten.left_out == {"bias only": "it did not train"}
    assert checks(summary)["forgetting at equal learning"] == (
        "warn",
        "where every arm has a validation accuracy of 0.800; without bias only: it did not train",
    )


def test_a_level_that_needs_no_change_compares_nothing() -> None:
    curves = dict(CURVES)
    try:
        CURVES["lora"] = ([0.5, 0.5, 0.5, 0.5, 0.5], curves["lora"][1])
        status, detail = checks(summary_of())["forgetting at equal learning"]
    finally:
        CURVES.update(curves)
    assert status == "warn"
    assert "with the base's body, so nothing was compared" in detail


def test_a_level_that_needs_no_learning_compares_nothing() -> None:
    study = make_study(3, forgetting={"data": DATA})
    summary = summary_of(study=study)
    (final,) = [record for record in make_records(study, 100) if record["phase"] == "final"][:1]
    final["forgetting"] = lost("full", 1)
    final["majority"]["test"]["accuracy"] = 0.9  # more than all arms share
    (equal,) = [check for check in probe_checks(study, [final], summary.forgotten) if "equal learning" in check.name]  # type: ignore[list-item]
    assert equal.status == "warn"
    assert "always answering the most frequent class" in equal.detail
    rows = tuple(
        replace(row, test=replace(row.test, mean=0.9)) if row.kind == "majority" and row.test else row
        for row in summary.rows
    )
    higher = replace(summary, rows=rows)
    assert "forget" in sentence(summary, summary.row("lora"))
    assert "forget" not in sentence(higher, higher.row("lora"))


def test_the_verdict_line_says_who_forgets_less_at_equal_learning() -> None:
    summary = summary_of()
    told = sentence(summary, summary.row("lora"))
    line = (
        "Where both have a validation accuracy of 80.0 %, it forgets less: \N{MINUS SIGN}0.220 nats "
        "[\N{MINUS SIGN}0.220, \N{MINUS SIGN}0.220]."
    )
    assert line in told
    assert "forgets" not in sentence(summary, summary.row("bias"))  # its probe moved up
    noisy = summary_of(noise=3.0)
    assert "the difference in what they forget is unresolved" in sentence(noisy, noisy.row("lora"))
    for silent in (summary_of(2), summary_of(shared={"texts": 9, "shared_texts": 1, "runs": 9, "shared_runs": 1})):
        assert "forget" not in sentence(silent, silent.row("lora"))


def test_tables_hold_every_point_and_every_place() -> None:
    summary = summary_of(kind="retrieval")
    found = tables(summary, [])  # type: ignore[arg-type]
    columns, rows = found["forgetting_points"]
    assert columns[:4] == ("arm", "seed", "t", "validation_accuracy")
    assert {"probe_mrr", "forgotten_mrr", "change", "change_relative"} <= set(columns)
    assert len(rows) == 3 * (3 * 5 + 1)
    columns, rows = found["forgetting"]
    where = columns.index("where")
    assert [row[where] for row in rows] == ["end"] * 4 + ["matched"] * 3 + ["pair"] * 2 + ["equal_change"] * 3
    columns, rows = found["arms"]
    assert {"forgetting_mrr", "known_before_mrr"} <= set(columns)
    assert "known_loss_before_nats" in tables(summary_of(), [])["arms"][0]  # type: ignore[arg-type]


def test_records_of_earlier_versions_say_what_they_hold() -> None:
    study = make_study(3, forgetting={"data": DATA})
    summary = make_summary(study, make_records(study, 100))
    assert summary.forgotten is None
    assert summary.row("full").forgetting is not None
    assert checks(summary)["forgetting at equal learning"] == ("none", "not recorded")
    assert "forgetting" not in tables(summary, [])  # type: ignore[operator]


def test_data_alone_stand_for_themselves() -> None:
    """The keys of the probe leave a study that does not use them, and the keys of its cells, as they were."""
    data = {"train": "b.jsonl", "test": "a.jsonl"}
    study = make_study(3, forgetting={"data": data})
    written = json.loads(study.canonical_json())["forgetting"]
    assert set(written) == {"data"}
    spelled = make_study(3, forgetting={"data": data, "probe": None, "along": [0, 0.25, 0.5, 0.75, 1]})
    assert spelled.hash == study.hash
    rates = {"full": 1e-4, "lora": 1e-3, "bias": 3e-3}
    assert [cell.key for cell in final_cells(spelled, rates)] == [cell.key for cell in final_cells(study, rates)]
    other = make_study(3, forgetting={"data": {"train": "b.jsonl", "test": "a.jsonl"}, "probe": "loss"})
    assert other.hash != study.hash
    assert StudySpec.model_validate(json.loads(other.canonical_json())) == other
    assert "probe: loss" in other.to_yaml()


def test_a_sample_of_validation_is_not_its_first_rows() -> None:
    session: Any = SimpleNamespace(examples={"validation": range(100)})
    few, more = (_chosen(session, Forgetting(data=DATA, examples=count)) for count in (10, 40))
    assert len(few) == 10
    assert list(few) == sorted(few)
    assert few[-1] > 50
    assert set(few) < set(more)
    assert _chosen(session, Forgetting(data=DATA)) == tuple(range(100))


REFUSED = {
    "mask_rate: belongs to the probe masked-lm\n  hint: write probe: masked-lm beside it, or remove it": {
        "mask_rate": 0.2
    },
    "max_length: belongs to the probe masked-lm or retrieval\n"
    "  hint: write probe: masked-lm or retrieval beside it, or remove it": {"probe": "loss", "max_length": 3},
    "along: along must ascend, each share once\n  hint: write along: [0, 0.25, 0.5, 0.75, 1]": {"along": [0, 0.5, 0.5]},
    "along: along must hold 1, which is the run itself\n  hint: add 1 at its end": {"along": [0, 0.5]},
    "along[1]: along[1] must be at most 1, not 2": {"along": [0, 2]},
    "examples: examples has nothing to be measured along\n  hint: remove it, or along: []": {
        "along": [],
        "examples": 9,
    },
    "probe: probe must be loss, masked-lm or retrieval, not the text 'mrr'": {"probe": "mrr"},
    "prob: unknown key 'prob'\n  hint: did you mean 'probe'?": {"prob": "loss"},
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_forgetting_may_not_say(told: str) -> None:
    with pytest.raises(SpecError) as caught:
        Forgetting(data=DATA, **REFUSED[told])
    assert told in str(caught.value)
