"""The interval over classes: as wide as the mean score varies from one choice of classes to another."""

import math

import numpy as np
import pytest
from scipy import stats

from kshot._engine.class_interval import class_interval


def draw(chance, C, N, E):
    """Return the classes of E episodes."""
    return np.array([chance.permutation(C)[:N] for _ in range(E)])


@pytest.mark.parametrize(("C", "N", "interaction"), [(8, 5, 0.0), (20, 5, 0.0), (20, 5, 1.0), (40, 20, 0.5)])
def test_the_variance_is_that_over_new_classes(C, N, interaction):
    """Simulated: each split draws the ease of its classes anew; pairs of classes that are alike are hard together."""
    chance = np.random.default_rng(0)
    means, widths = [], []
    for _ in range(300):
        ease = chance.normal(size=C)
        classes = draw(chance, C, N, 400)
        own = ease[classes]
        scores = own.mean(1) + interaction * own.std(1) + chance.normal(size=400)
        means.append(scores.mean())
        widths.append(class_interval(scores, classes))
    estimated = np.mean(np.square(widths)) / stats.t.ppf(0.975, C - 1) ** 2
    assert 0.8 < estimated / np.var(means, ddof=1) < (1.35 if C > 2 * N else 2.2)
    covered = np.mean(np.abs(np.asarray(means) - np.mean(means)) < widths)
    assert 0.9 < covered < 0.998


@pytest.mark.parametrize(("C", "N", "most"), [(20, 5, 2), (300, 2, 1.3)])
def test_without_an_effect_of_classes_it_is_hardly_wider_than_that_over_episodes(C, N, most):
    """The chance of the episodes is not taken for one of the classes."""
    chance = np.random.default_rng(1)
    widths, usual = [], []
    for _ in range(200):
        classes, scores = draw(chance, C, N, 300), chance.normal(size=300)
        widths.append(class_interval(scores, classes) / stats.t.ppf(0.975, C - 1))
        usual.append(scores.std(ddof=1) / math.sqrt(300))
    assert np.mean(usual) <= np.mean(widths) < most * np.mean(usual)


def test_where_it_can_not_be_known_it_is_nan():
    """All episodes of all classes, fewer than four classes, one episode, or a score that is not finite."""
    chance = np.random.default_rng(2)
    for C, N, E in ((5, 5, 50), (3, 2, 50), (10, 5, 1)):
        assert math.isnan(class_interval(chance.normal(size=E), draw(chance, C, N, E)))
    scores = chance.normal(size=50)
    scores[3] = math.inf
    assert math.isnan(class_interval(scores, draw(chance, 10, 5, 50)))
