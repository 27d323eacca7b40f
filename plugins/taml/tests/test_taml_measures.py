"""``kshot_taml.measures``: inequalities by hand and by naive loops, and losses of 0."""

import doctest
import math
from functools import partial

import pytest
import torch

import kshot_taml.measures
from kshot_taml import atkinson, generalised_entropy, gini, prediction_entropy, theil, variance_of_logs

LOSSES = torch.tensor([0.3, 1.7, 0.9, 2.2, 0.05], dtype=torch.float64)
L = LOSSES.tolist()
MEAN = sum(L) / 5

NAIVE = {
    "gini": (gini, sum(abs(a - b) for a in L for b in L) / (2 * 5 * sum(L))),
    "theil": (theil, sum(a / MEAN * math.log(a / MEAN) for a in L) / 5),
    "variance of logs": (
        variance_of_logs,
        sum((math.log(a) - math.log(math.prod(L) ** 0.2)) ** 2 for a in L) / 5,
    ),
    "atkinson 0.5": (partial(atkinson, epsilon=0.5), 1 - (sum(a**0.5 for a in L) / 5) ** 2 / MEAN),
    "atkinson 1": (partial(atkinson, epsilon=1.0), 1 - math.prod(L) ** 0.2 / MEAN),
    "atkinson 2": (partial(atkinson, epsilon=2.0), 1 - 5 / sum(1 / a for a in L) / MEAN),
    "entropy 2": (generalised_entropy, sum((a / MEAN) ** 2 - 1 for a in L) / (5 * 2)),
    "entropy -1": (partial(generalised_entropy, alpha=-1.0), sum(MEAN / a - 1 for a in L) / (5 * 2)),
    "entropy 0": (partial(generalised_entropy, alpha=0.0), -sum(math.log(a / MEAN) for a in L) / 5),
    "entropy 1": (partial(generalised_entropy, alpha=1.0), sum(a / MEAN * math.log(a / MEAN) for a in L) / 5),
}
MEASURES = {name: measure for name, (measure, _) in NAIVE.items()}


def test_the_examples_run():
    """The values in the docstrings are worked out by hand."""
    result = doctest.testmod(kshot_taml.measures)
    assert result.attempted > 7
    assert result.failed == 0


@pytest.mark.parametrize("name", NAIVE)
def test_a_measure_is_its_formula(name):
    """Each equals a loop over the equation of the paper, with plain numbers."""
    measure, expected = NAIVE[name]
    assert float(measure(LOSSES)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NAIVE)
def test_equal_losses_are_not_unequal(name):
    """Equal losses give 0, and so does a single task; unequal ones give more than 0."""
    for losses in (torch.full((4,), 0.7, dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)):
        assert abs(float(MEASURES[name](losses))) < 1e-14
    assert float(MEASURES[name](LOSSES)) > 0.01


@pytest.mark.parametrize("name", NAIVE)
def test_the_scale_does_not_matter(name):
    """Losses that all shrink by training are not less unequal for it."""
    for scale in (1e-6, 1e6):
        assert float(MEASURES[name](scale * LOSSES)) == pytest.approx(float(MEASURES[name](LOSSES)), rel=1e-9)


def test_generalised_entropy_is_continuous_and_known_at_2():
    """GE(2) is half the squared coefficient of variation; GE(1) and GE(0) are the limits of their neighbours."""
    variation = float(LOSSES.std(unbiased=False)) / MEAN
    assert float(generalised_entropy(LOSSES, 2.0)) == pytest.approx(variation**2 / 2, rel=1e-12)
    assert float(generalised_entropy(LOSSES, 1 + 1e-6)) == pytest.approx(float(theil(LOSSES)), rel=1e-5)
    assert float(generalised_entropy(LOSSES, 1e-6)) == pytest.approx(float(generalised_entropy(LOSSES, 0.0)), rel=1e-5)
    assert float(atkinson(LOSSES, 1 + 1e-6)) == pytest.approx(float(atkinson(LOSSES, 1.0)), rel=1e-5)


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("losses", [[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0]])
def test_losses_of_0_give_finite_numbers_and_slopes(name, losses):
    """A task can be solved exactly; the logarithm of 0 must not end a training."""
    leaf = torch.tensor(losses, requires_grad=True)
    value = MEASURES[name](leaf)
    value.backward()
    assert bool(value.isfinite())
    assert bool(leaf.grad.isfinite().all())
    if sum(losses) == 0:
        assert float(value.detach()) == pytest.approx(0, abs=1e-7)
    else:
        assert float(value.detach()) > 0.1


def test_the_entropy_of_predictions():
    """It is the mean over examples of -sum p ln p; confident logits of any size give 0 and no NaN."""
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]], dtype=torch.float64)
    expected = -sum(p * math.log(p) for row in probabilities.tolist() for p in row) / 2
    assert float(prediction_entropy(probabilities.log() + 3)) == pytest.approx(expected, rel=1e-12)
    assert float(prediction_entropy(torch.tensor([[1e4, 0.0, 0.0]]))) == 0
