"""The classifier that knows the distribution is right and better than one that does not; figures of the README."""

import itertools
import math

import numpy as np
import pytest
import torch

from kshot import Support
from kshot_linear_classification import LinearClassification, bayes, logistic_regression


def accuracies(logits, episode):
    """Return the accuracy of each task [B]."""
    return (logits.argmax(-1) == episode.query.y).double().mean(1).numpy()


def interval(values):
    """Return four standard errors of a mean."""
    return 4 * values.std() / math.sqrt(len(values))


def test_bayes_is_a_vote_if_there_are_two_hypotheses():
    """With one direction +u or -u and noise p, it takes the majority of the support's 2 K votes.

    A vote is right with probability 0.8. With K = 1 the majority is right with probability 0.64 + 0.32 / 2 = 0.8, so
    the accuracy is 0.8 * 0.8 + 0.2 * 0.2 = 0.68; and likewise for three examples per class.
    """
    for shot in (1, 3):
        votes = [sum(v) for v in itertools.product((0, 1), repeat=2 * shot)]
        right = sum(0.8**v * 0.2 ** (2 * shot - v) * (1 if v > shot else 0.5 if v == shot else 0) for v in votes)
        expected = 0.8 * right + 0.2 * (1 - right)
        assert shot > 1 or expected == pytest.approx(0.68)
        tasks = LinearClassification(shot=shot, subspace=1, noise=0.2)
        episode = tasks.sample("test", range(1000))
        measured = accuracies(bayes(tasks, episode.support, episode.query.x, samples=20), episode)
        assert measured.mean() == pytest.approx(expected, abs=interval(measured))


class OnACircle(LinearClassification):
    """Represent the same tasks with normals at equally spaced angles, instead of random ones."""

    def normals(self, keys):
        angles = 2 * np.pi * (np.arange(len(keys)) + 0.5) / len(keys)
        return np.stack([np.cos(angles), np.sin(angles)], 1) @ self.basis.T


@pytest.mark.parametrize(("margin", "noise"), [(0.0, 0.0), (0.0, 0.2), (0.3, 0.0), (0.3, 0.1)])
def test_bayes_is_an_integral_over_angles_in_a_plane(margin, noise):
    """numpy computes the same sums over 2,000 angles, written with densities, one example after another."""
    options = {"shot": 2, "query": 10, "dimensions": 6, "margin": margin, "noise": noise}
    episode = LinearClassification(**options).sample("test", range(20))
    tasks = OnACircle(**options)
    w = tasks.normals(np.arange(2_000))

    def density(x, y):
        """Return p(x, y | w) [2,000], divided by the normal density of the part of x across w."""
        d = w @ x
        # Inputs are rounded to float32, so one at the margin may seem to be a little within it.
        of_input = np.where(np.abs(d) >= margin - 1e-5, np.exp(-((np.abs(d) - margin) ** 2) / 2), 0) * np.exp(d**2 / 2)
        return of_input * np.where((d > 0) == (y == 1), 1 - noise, noise)

    support = Support(episode.support.x.double(), episode.support.y, way=2)
    result = bayes(tasks, support, episode.query.x.double(), samples=2_000).exp().numpy()
    for b in range(episode.size):
        examples = zip(support.x[b].numpy(), support.y[b].tolist(), strict=True)
        posterior = np.prod([density(x, y) for x, y in examples], 0)
        for i, x in enumerate(episode.query.x[b].double().numpy()):
            p = np.array([np.sum(posterior * density(x, y)) for y in (0, 1)])
            assert np.allclose(p / p.sum(), result[b, i], atol=1e-6)


def test_bayes_draws_enough_normals():
    """With the default number of samples, probabilities differ by less than 0.002 on average from the integral's."""
    options = {"shot": 5, "dimensions": 6}
    episode = LinearClassification(**options).sample("test", range(50))
    random, regular = (
        bayes(tasks(**options), episode.support, episode.query.x).exp() for tasks in (LinearClassification, OnACircle)
    )
    differences = (random - regular).abs()
    assert float(differences.mean()) < 0.002
    assert float(differences.max()) < 0.1


def test_logistic_regression_minimises_its_loss():
    """Autograd finds no slope at the fitted weights, which are read off by predicting the unit vectors."""
    episode = LinearClassification(dimensions=7, noise=0.1).sample("test", range(5))
    x = episode.support.x.double()
    support = Support(x, episode.support.y, way=2)
    logits = logistic_regression(support, torch.eye(7, dtype=torch.float64).expand(5, 7, 7), penalty=0.3)
    assert torch.equal(logits[..., 0], torch.zeros(5, 7, dtype=torch.float64))
    w = logits[..., 1].clone().requires_grad_()
    score = torch.einsum("bsd,bd->bs", x, w)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(score, support.y.double(), reduction="sum")
    (loss + 0.15 * w.square().sum()).backward()
    assert float(w.grad.abs().max()) < 1e-9


def test_who_knows_the_subspace_beats_who_does_not():
    """The README's figures for 200 tasks, within four standard errors.

    Logistic regression is given the best of three penalties; in the subspace it is nearly as good as Bayes. Without a
    common subspace, to know the distribution is of little use.
    """
    tasks = LinearClassification()
    episode = tasks.sample("test", range(200))
    inside = torch.from_numpy(tasks.basis).float()
    projected = Support(episode.support.x @ inside, episode.support.y, way=2)
    measured = {
        "bayes": accuracies(bayes(tasks, episode.support, episode.query.x), episode),
        "inside": accuracies(logistic_regression(projected, episode.query.x @ inside, penalty=0.1), episode),
        "alone": accuracies(logistic_regression(episode.support, episode.query.x), episode),
    }
    for name, expected in (("bayes", 0.952), ("inside", 0.945), ("alone", 0.615)):
        assert measured[name].mean() == pytest.approx(expected, abs=interval(measured[name])), name
    assert np.mean(measured["bayes"] - measured["inside"]) > 0
    assert np.mean(measured["inside"] - measured["alone"]) > 0.3


def test_a_normal_with_spread_limits_who_knows_the_subspace_only():
    """With spread 0.5, the best normal in the subspace is at an angle of atan(0.5), so 14.8 % of inputs are wrong."""
    tasks = LinearClassification(subspace=1, spread=0.5, shot=1)
    episode = tasks.sample("test", range(500))
    along = (episode.query.x.double().numpy() @ tasks.basis)[..., 0]
    sides = along * np.sign(episode.origin.fields["normal"] @ tasks.basis)
    right = np.mean((sides > 0) == episode.query.y.numpy(), 1)
    assert right.mean() == pytest.approx(1 - math.atan(0.5) / math.pi, abs=interval(right))
