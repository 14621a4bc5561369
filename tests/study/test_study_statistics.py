"""The numbers themselves, against cases that can be worked out otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from surgery.study.resample import resampled_ratios, resampled_scores
from surgery.study.statistics import across_seeds, holm, mcnemar, paired


def test_mean_and_student_interval_over_seeds() -> None:
    estimate = across_seeds([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.deviation == pytest.approx(1.0)
    assert estimate.interval is not None
    assert estimate.interval.high - 2.0 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert across_seeds([1.5]).interval is None


def test_holm_is_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([]) == ()
    assert holm([0.9, 0.8]) == (1.0, 1.0)


def test_mcnemar_is_exact() -> None:
    arm = [True] * 9 + [False] * 1 + [True] * 5
    reference = [False] * 9 + [True] * 1 + [True] * 5
    assert mcnemar(arm, reference) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(arm, arm) == 1.0


def test_resampling_a_ratio_is_resampling_the_score() -> None:
    generator = np.random.default_rng(0)
    values, units = generator.random((2, 40)), generator.integers(1, 5, 40).astype(float)
    runs = [{"loss": row, "units": units} for row in values]
    fast = resampled_ratios(values, units, 50, 7)
    slow = resampled_scores(runs, lambda items: float(items["loss"].sum() / items["units"].sum()), 50, 7)
    # Not the same draws (one is drawn in blocks), the same distribution; and rows of one call share their draws.
    assert fast.shape == slow.shape == (50, 2)
    assert fast.mean() == pytest.approx(slow.mean(), rel=0.02)
    twice = resampled_ratios(np.stack([values[0], values[0]]), units, 50, 7)
    assert (twice[:, 0] == twice[:, 1]).all()


def test_item_variance_is_the_bootstraps_own() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(0, 1, (4, 500))
    pair = paired(list(values.mean(axis=1)), resampled_ratios(values, np.ones(500), 4000, 0), 500, 0)
    assert pair.item_part == pytest.approx(values.mean(axis=0).var(ddof=1) / 500, rel=0.06)
    assert pair.seed_part == pytest.approx(values.mean(axis=1).var(ddof=1) / 4)
    assert pair.shared_part == pytest.approx(1 / (4 * 500), rel=0.15)


def test_one_seed_speaks_of_items_only() -> None:
    values = np.random.default_rng(2).normal(0.2, 1, (1, 300))
    pair = paired([float(values.mean())], resampled_ratios(values, np.ones(300), 4000, 0), 300, 0)
    assert pair.seed_part == 0
    assert pair.half_width(0.95) == pytest.approx(1.968 * values.std(ddof=1) / 300**0.5, rel=0.05)


def test_p_is_where_the_interval_touches_zero() -> None:
    values = np.random.default_rng(3).normal(0.15, 1, (5, 300))
    pair = paired(list(values.mean(axis=1)), resampled_ratios(values, np.ones(300), 2000, 0), 300, 0)
    interval = pair.interval(1 - pair.p)
    assert min(abs(interval.low), abs(interval.high)) < 1e-6
    assert (pair.p < 0.05) == (0 not in pair.interval(0.95))


def test_identical_arms_differ_by_nothing() -> None:
    pair = paired([0.0, 0.0, 0.0], np.zeros((100, 3)), 50, 0)
    assert pair.p == 1.0
    assert pair.half_width(0.95) == 0.0
    assert 0 in pair.interval(0.95)


def test_more_seeds_or_items_are_forecast_to_narrow() -> None:
    values = np.random.default_rng(4).normal(0.0, 1, (3, 200)) + np.random.default_rng(5).normal(0, 0.05, (3, 1))
    pair = paired(list(values.mean(axis=1)), resampled_ratios(values, np.ones(200), 2000, 0), 200, 0)
    now = pair.half_width(0.95)
    assert pair.forecast(3, 200, 0.95) == pytest.approx(now, rel=1e-9)
    assert pair.forecast(6, 200, 0.95) < now
    assert pair.forecast(3, 400, 0.95) <= now
    assert now < pair.detectable < 2 * now
