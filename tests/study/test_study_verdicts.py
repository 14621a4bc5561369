"""Which word, and in which words: golden sentences for cases with a known answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import TRUTH, make_records, make_study, make_summary

from surgery.study import Comparison
from surgery.study.record import MetricInfo
from surgery.study.statistics import Estimate, Interval, Paired
from surgery.study.summary import Row, Summary
from surgery.study.verdict import Verdict, judge
from surgery.study.words import sentence


def pair(difference: float, error: float, seeds: int = 5, items: int = 800, **more: Any) -> Paired:
    """A pair whose seed part and item part are equal, of a standard error of `error` together."""
    half = error**2 / 2
    return Paired(
        difference, seeds, items, (difference,) * seeds, half if seeds > 1 else 0.0, half, 0.0, Interval(0, 0), **more
    )


def summary_of(found: Paired, verdict: Verdict, metric: str = "accuracy", greater: bool = True, **keys: Any) -> Summary:
    reference = Row("full", "full tuning", "reference", 1000, 10, 1.0, 1e-4, (1e-5, 1e-4, 1e-3), True, step_cpu=0.4)
    arm = Row(
        "small",
        "Small",
        "arm",
        20,
        10,
        0.0147,
        1e-3,
        (1e-4, 1e-3, 1e-2),
        True,
        test=Estimate(0.8, 0.01, Interval(0.79, 0.81), found.seeds),
        pair=found,
        interval=found.interval(0.95),
        narrow=found.interval(0.9),
        verdict=verdict,
        step_cpu=0.3,
    )
    return Summary(
        "demo",
        "hash",
        MetricInfo(name=metric, greater_is_better=greater),
        keys.pop("margin", 0.01),
        "full",
        tuple(range(found.seeds)),
        found.items,
        "cpu",
        (reference, replace(arm, **keys)),
        (),
        (),
        0,
    )


def said(found: Paired, **keys: Any) -> str:
    greater = keys.get("greater", True)
    margin = keys.get("margin", 0.01)
    verdict = judge(found, margin, greater_is_better=greater, unswept=not keys.get("swept", True))
    summary = summary_of(found, verdict, **keys)
    return sentence(summary, summary.row("small"))


SENTENCES = {
    "worse": (
        pair(-0.05, 0.01),
        {},
        "Small against full tuning: accuracy −5.0 pt [−7.4, −2.6] (95 %, 5 seeds, 800 test items): worse. "
        "Trains 1.47 % of the base's size; 0.75x the CPU time of a step.",
    ),
    "better loss": (
        pair(-0.05, 0.01),
        {"metric": "loss", "greater": False, "margin": 0.02},
        "Small against full tuning: loss −0.050 nats [−0.074, −0.026] (95 %, 5 seeds, 800 test items): better. "
        "Trains 1.47 % of the base's size; 0.75x the CPU time of a step.",
    ),
    "equivalent": (
        pair(0.001, 0.002),
        {},
        "Small against full tuning: accuracy +0.1 pt [−0.4, +0.6] (95 %, 5 seeds, 800 test items): equivalent within ±1 pt. "
        "Trains 1.47 % of the base's size; 0.75x the CPU time of a step.",
    ),
    "real but negligible": (
        pair(0.005, 0.001),
        {},
        "Small against full tuning: accuracy +0.5 pt [+0.3, +0.7] (95 %, 5 seeds, 800 test items): equivalent within ±1 pt, "
        "a real but negligible difference. Trains 1.47 % of the base's size; 0.75x the CPU time of a step.",
    ),
    "unresolved": (
        pair(-0.01, 0.01),
        {},
        "Small against full tuning: accuracy −1.0 pt [−3.4, +1.4] (95 %, 5 seeds, 800 test items): unresolved at ±1 pt: "
        "the 95 % interval holds 0 and the 90 % interval leaves the margin; neither more seeds nor more "
        "test items alone would resolve it. Trains 1.47 % of the base's size; 0.75x the CPU time of a step.",
    ),
    "indicative": (
        pair(-0.05, 0.005, seeds=3),
        {},
        "Small against full tuning: accuracy −5.0 pt [−6.7, −3.3] (95 %, 3 seeds, 800 test items): worse (indicative: "
        "3 seeds). Trains 1.47 % of the base's size; 0.75x the CPU time of a step.",
    ),
    "unswept": (
        pair(-0.05, 0.005),
        {"swept": False},
        "Small against full tuning: accuracy −5.0 pt [−6.2, −3.8] (95 %, 5 seeds, 800 test items): worse (indicative: "
        "learning rate not swept for Small). Trains 1.47 % of the base's size; 0.75x the CPU time of a step.",
    ),
    "one seed": (
        pair(-0.05, 0.01, seeds=1, mcnemar=0.0123),
        {},
        "Small against full tuning: accuracy −5.0 pt [−6.4, −3.6] (95 %, 1 seed, 800 test items): unresolved at ±1 pt: "
        "1 seed cannot show training noise; at least 3 are needed. With one seed the interval speaks of these very weights "
        "(exact McNemar p = 0.0123) and says nothing about training noise. Trains 1.47 % of the base's size; 0.75x the CPU "
        "time of a step.",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_golden_sentences(case: str) -> None:
    found, keys, expected = SENTENCES[case]
    assert said(found, **keys) == expected


def test_a_red_line_blocks_the_verdict() -> None:
    verdict = judge(
        pair(-0.5, 0.001), 0.01, greater_is_better=True, blocked="initial head tensors: arms differ on seed 1"
    )
    assert verdict.word == "unresolved"
    assert verdict.blocked
    summary = summary_of(pair(-0.5, 0.001), verdict)
    assert "unresolved at ±1 pt: no verdict: initial head tensors: arms differ" in sentence(
        summary, summary.row("small")
    )


def test_a_red_line_is_told_once_and_few_seeds_beside_it() -> None:
    study = make_study(2)
    records = make_records(study, 100)
    spoilt = next(record for record in records if record["arm"] == "lora" and record["phase"] == "final")
    spoilt["hashes"] = {**spoilt["hashes"], "base": "f" * 64}
    summary = make_summary(study, records)
    assert "2 different ones" in summary.blocked
    for row in summary.rows[1:]:
        assert row.verdict
        assert row.verdict.blocked == summary.blocked
        assert row.verdict.reason == (
            "no verdict: see the red line 'base weights' of the checklist; "
            "2 seeds cannot show training noise; at least 3 are needed"
        )
    comparison = Comparison(Path(), study, summary, tuple(records))  # type: ignore[arg-type]
    assert str(comparison).count("different ones") == 1


def test_differences_without_any_spread_detect_nothing() -> None:
    study = make_study(2)
    records = make_records(study, 100)
    same = {record["seed"]: record for record in records if record["arm"] == "full" and record["phase"] == "final"}
    for record in records:
        if record["arm"] == "lora" and record["phase"] == "final":
            record.update({key: same[record["seed"]][key] for key in ("items", "test")})
    summary = make_summary(study, records)
    row = summary.row("lora")
    assert row.pair
    assert row.pair.difference == row.pair.half_width(0.95) == 0
    assert row.detectable is None
    told = sentence(summary, row)
    assert "0.0 pt on" not in told
    assert "cannot be estimated" in told
    assert "2 seeds cannot show training noise" in told
    assert "cannot be estimated" not in sentence(summary, summary.row("bias"))


def test_holm_takes_a_verdict_back() -> None:
    found = pair(-0.05, 0.0185)
    assert judge(found, 0.01, greater_is_better=True).word == "worse"
    held = judge(found, 0.01, greater_is_better=True, adjusted_p=0.08)
    assert held.word == "unresolved"
    assert "Holm" in held.reason


def test_what_would_resolve_it_does_resolve_it() -> None:
    found = Paired(-0.01, 3, 800, (-0.01,) * 3, 1e-5, 3e-5, 0.0, Interval(0, 0))
    verdict = judge(found, 0.002, greater_is_better=True)
    assert verdict.word == "unresolved"
    assert verdict.items_needed is None or found.forecast(3, verdict.items_needed, 0.95) < 0.01
    assert verdict.seeds_needed is None or found.forecast(verdict.seeds_needed, 800, 0.95) < 0.01
    many = Paired(-0.02, 3, 800, (-0.02,) * 3, 1e-4, 1e-6, 0.0, Interval(0, 0))
    needed = judge(many, 0.002, greater_is_better=True).seeds_needed
    assert needed is not None
    assert many.forecast(needed, 800, 0.95) < 0.02 <= many.forecast(needed - 1, 800, 0.95)


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_never_give_a_winner(seeds: int) -> None:
    study = make_study(seeds)
    summary = make_summary(study, make_records(study, 300))
    assert {row.verdict.word for row in summary.rows if row.verdict} == {"unresolved"}


def test_a_made_up_study_is_read_as_it_was_made() -> None:
    study = make_study(10)
    summary = make_summary(study, make_records(study))
    words = {row.arm: row.verdict.word for row in summary.rows if row.verdict}
    assert words["bias"] == words["frozen"] == words["majority"] == "worse"
    assert not any(row.verdict.indicative for row in summary.rows if row.verdict)
    lora = summary.row("lora")
    assert lora.pair is not None
    assert np.isclose(lora.pair.difference, np.mean(lora.pair.per_seed))
    assert abs(lora.pair.difference - (TRUTH["lora"] - TRUTH["full"])) < 0.015
    assert summary.row("frozen").adjusted_p is None
