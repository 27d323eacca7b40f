"""Tests of the measures of verification, against values worked out by hand and by counting pairs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import Pool
from kshot.errors import DataError
from kshot_siamese import Siamese
from kshot_siamese.verification import (
    balanced_accuracy,
    best_threshold,
    equal_error_rate,
    pairs_of,
    report,
    roc_auc,
    roc_curve,
)

DISTANCE = [0.1, 0.2, 0.3, 0.3, 0.5, 0.9]
GENUINE = [True, True, False, True, False, False]


def test_auc_by_hand() -> None:
    """Of nine pairs (genuine, imposter), eight are in order and one is a tie, so the area is 8.5 / 9."""
    assert roc_auc(DISTANCE, GENUINE) == pytest.approx(8.5 / 9)
    assert roc_auc([1.0, 2.0], [True, False]) == 1.0
    assert roc_auc([2.0, 1.0], [True, False]) == 0.0
    assert roc_auc([1.0, 1.0, 1.0], [True, False, False]) == 0.5


def test_auc_is_the_share_of_pairs_in_order() -> None:
    """A naive count over all pairs (genuine, imposter) gives the same, with many ties."""
    rng = np.random.default_rng(0)
    d, g = rng.integers(0, 20, 300).astype(float), rng.random(300) < 0.3
    gaps = d[~g][None] - d[g][:, None]
    assert roc_auc(d, g) == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean(), abs=1e-12)


def test_auc_is_the_area_under_the_curve() -> None:
    """The trapezoid rule over ``roc_curve`` gives the same."""
    rng = np.random.default_rng(1)
    d, g = rng.integers(0, 20, 300).astype(float), rng.random(300) < 0.3
    _, false, true = roc_curve(d, g)
    area = ((false[1:] - false[:-1]) * (true[1:] + true[:-1]) / 2).sum()
    assert roc_auc(d, g) == pytest.approx(area, abs=1e-12)


def test_roc_curve_by_hand() -> None:
    """A pair is accepted if its distance is at most the threshold; equal distances are accepted together."""
    thresholds, false, true = roc_curve(DISTANCE, GENUINE)
    assert thresholds.tolist() == [-math.inf, 0.1, 0.2, 0.3, 0.5, 0.9]
    assert false.tolist() == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1])
    assert true.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])


def test_equal_error_rate_by_hand() -> None:
    """Between 0.2 (false 0, refused 1/3) and 0.3 (false 1/3, refused 0) the two lines cross at 1/6."""
    assert equal_error_rate(DISTANCE, GENUINE) == pytest.approx(1 / 6)
    assert equal_error_rate([1.0, 2.0], [True, False]) == 0.0
    assert equal_error_rate([2.0, 1.0], [True, False]) == 1.0
    assert equal_error_rate([1.0, 1.0], [True, False]) == 0.5
    # four pairs of each kind, with one of each on the wrong side
    assert equal_error_rate([1, 2, 3, 7, 4, 8, 9, 10], [True] * 4 + [False] * 4) == 0.25


def test_threshold_and_balanced_accuracy_by_hand() -> None:
    """From 0.3 to 0.5, all three genuine pairs are accepted and two of three imposters refused; the middle is 0.4."""
    assert best_threshold(DISTANCE, GENUINE) == pytest.approx(0.4)
    assert balanced_accuracy(DISTANCE, GENUINE, 0.4) == pytest.approx((1 + 2 / 3) / 2)
    # A pair at the threshold is accepted: here one genuine pair and the imposter of the same distance.
    assert balanced_accuracy(DISTANCE, GENUINE, 0.3) == pytest.approx((1 + 2 / 3) / 2)
    assert balanced_accuracy(DISTANCE, GENUINE, 0.2) == pytest.approx((2 / 3 + 1) / 2)
    # Nine pairs in ten are imposters, but refusing every pair has the accuracy 1/2, not 9/10.
    assert balanced_accuracy(range(10), [True] + [False] * 9, -1.0) == 0.5
    # If no threshold is better than 1/2, every pair is accepted rather than refused.
    assert best_threshold([1.0, 2.0], [False, True]) == 2.0


def test_the_middle_of_the_widest_gap_is_chosen_among_equally_good_thresholds() -> None:
    """Thresholds from 1 to 2 and from 3 to 7 both have a balanced accuracy of 3/4; 5 is the middle of the wider gap."""
    assert best_threshold([1.0, 2.0, 3.0, 7.0], [True, False, True, False]) == 5.0


@pytest.mark.parametrize(
    ("distance", "genuine", "message"),
    [
        ([1.0, 2.0], [True], "expected one label per distance"),
        ([1.0, math.nan], [True, False], "got NaN for 1 of 2 distances"),
        ([1.0, 2.0], [True, True], "got 2 genuine pairs among 2 pairs"),
        ([], [], "got 0 genuine pairs among 0 pairs"),
    ],
)
def test_unusable_pairs_are_refused(distance: list[float], genuine: list[bool], message: str) -> None:
    """Otherwise the measures would divide by 0."""
    for measure in (roc_auc, equal_error_rate, best_threshold):
        with pytest.raises(DataError, match=message):
            measure(distance, genuine)


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_pairs_of_a_pool_are_complete_and_have_their_distances(batch: int) -> None:
    """A naive loop gives the same pairs for any batch; they are numbered as in ``pool.table()``, sorted by class."""
    x = torch.tensor([[0.0, 0.0], [5.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    pool = Pool.of(x, [0, 1, 1, 0])
    spec = kshot.TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)
    computed = pairs_of(Siamese(spec, encoder=nn.Flatten(), unit_length=False).eval(), pool, batch=batch)
    rows = pool.table()[0]
    naive: dict[Any, Any] = {}
    for i in range(4):
        for j in range(i + 1, 4):
            a, b = x[rows[i]], x[rows[j]]
            naive[i, j] = (float(((a - b) ** 2).sum().sqrt()), {int(rows[i]), int(rows[j])} in ({0, 3}, {1, 2}))
    assert len(naive) == len(computed.distance) == 6
    for i, j, d, g in zip(computed.first, computed.second, computed.distance, computed.genuine, strict=True):
        assert naive[i, j] == (pytest.approx(d), g)


def test_a_report_has_the_accuracy_if_a_threshold_is_given() -> None:
    """The threshold was chosen on other pairs; without one, the accuracy is left out."""
    pool = Pool.of(torch.tensor([[0.0], [0.1], [1.0], [1.2]]), [0, 0, 1, 1])
    spec = kshot.TaskSpec(kind="classification", input_shape=(1,), way=2, shot=1, query=1)
    computed = pairs_of(Siamese(spec, encoder=nn.Flatten(), unit_length=False).eval(), pool)
    assert report(computed) == {"auc": 1.0, "eer": 0.0}
    assert report(computed, 0.15) == {"auc": 1.0, "eer": 0.0, "accuracy": 0.75}
