"""Temperatures, conformal bounds and intervals: by hand, and on data that fit the theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from kshot.runs.confidence import ADDED, calibration_error, conformal_quantile, share_interval, temperature


def test_the_temperature_maximises_the_likelihood() -> None:
    """A fine grid around it has no better value."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, 4)) * 5, rng.integers(0, 4, 30)
    logits[np.arange(30), labels] += 4

    def likelihood(t: float) -> float:
        log_p = special.log_softmax(logits / t, axis=1)
        return float(log_p[np.arange(30), labels].sum() + ADDED * log_p.mean())

    best = temperature(logits, labels)
    grid = best * np.exp(np.linspace(-3, 3, 4001))
    assert likelihood(best) >= max(map(likelihood, grid)) - 1e-6


def test_the_temperature_has_the_scale_of_the_logits() -> None:
    """Logits that are a hundred times as large have a temperature that is a hundred times as high."""
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(20, 3)), rng.integers(0, 3, 20)
    assert temperature(100 * logits, labels) == pytest.approx(100 * temperature(logits, labels), rel=1e-4)


def test_perfect_predictions_are_not_certain() -> None:
    """The part of an example that is added keeps probabilities below 1."""
    logits, labels = np.eye(3)[[0, 1, 2, 0, 1, 2]], np.array([0, 1, 2, 0, 1, 2])
    p = special.softmax(logits / temperature(logits, labels), axis=1).max(1)
    assert ((p > 0.9) & (p < 0.9999)).all()


def test_calibrated_probabilities_on_new_examples() -> None:
    """Logits that are three times too large get a temperature of about three."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4000, 3))
    labels = np.array([rng.choice(3, p=special.softmax(row)) for row in logits])
    assert temperature(3 * logits, labels) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("n", [9, 25, 99])
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_a_new_score_is_within_the_bound_as_often_as_stated(n: int, coverage: float) -> None:
    """On exchangeable scores, within three standard errors of 20,000 trials and the error of interpolation."""
    rng = np.random.default_rng(n)
    scores = rng.exponential(size=(20_000, n + 1))
    within = np.mean([row[-1] <= conformal_quantile(row[:-1], coverage) for row in scores])
    assert within == pytest.approx(coverage, abs=3 * math.sqrt(coverage * (1 - coverage) / 20_000) + 0.2 / n)


def test_bounds_by_hand() -> None:
    """The r-th smallest of n scores has the probability r / (n + 1)."""
    scores = np.array([4.0, 1.0, 3.0, 2.0])
    assert [conformal_quantile(scores, r / 5) for r in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert conformal_quantile(scores, 0.5) == 2.5
    assert conformal_quantile(scores, 0.81) == math.inf
    assert conformal_quantile(np.zeros(0), 0.5) == math.inf


def test_the_interval_of_a_share_is_wilsons() -> None:
    """By the formula, with z = 1.96."""
    z, n, p = 1.959963984540054, 30, 24 / 30
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    assert share_interval(24, 30) == pytest.approx(expected)


def test_the_calibration_error_by_hand() -> None:
    """Two bins: confidence 0.6 with half right, and 0.9 with all right."""
    p = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.1, 0.9]])
    assert calibration_error(p, np.array([0, 1, 0, 1])) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
