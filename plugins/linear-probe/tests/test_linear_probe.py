"""The linear probe: the optimum of its objective, the choice of the penalty by a naive loop, and limits."""

import doctest
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

import kshot
from kshot import Engine, Support, TaskSpec
from kshot.errors import OptionError
from kshot.functional import class_folds
from kshot_linear_probe import LinearProbe
from kshot_linear_probe.logistic import PENALTIES, best_penalty, fitted, left_out_loss


def blobs(way, shot, D, seed=0, spread=1.0):
    """Return embeddings [S, D] of classes whose means have the distance of about ``sqrt(2 D)``, and labels, mixed."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(way).repeat(shot)[torch.randperm(way * shot, generator=generator)]
    means = torch.randn(way, D, generator=generator, dtype=torch.float64)
    return means[y] + spread * torch.randn(len(y), D, generator=generator, dtype=torch.float64), y


def learner(way, D, **options):
    """Return a probe for which the inputs are the embeddings."""
    spec = TaskSpec(kind="classification", input_shape=(D,), way=way, shot=1, query=1)
    return LinearProbe(spec, **options).double()


@pytest.mark.parametrize("way", [2, 3, 5])
@pytest.mark.parametrize("D", [3, 40])
def test_the_weights_are_the_optimum_of_the_penalised_regression(way, D):
    """The gradient of the mean cross-entropy plus penalty / 2 ||W||^2 is 0, in the unit of the support's spread, also
    for two classes, for which scikit-learn has a single vector. More dimensions than examples change nothing.
    """
    z, y = blobs(way, 4, D)
    W, b = learner(way, D, penalty=0.05).probe(z, y, way)
    unit = (z - z.mean(0)).square().sum(-1).mean().sqrt()
    scaled = (W * unit).requires_grad_()
    offset = (b + W @ z.mean(0)).requires_grad_()
    loss = F.cross_entropy((z - z.mean(0)) / unit @ scaled.T + offset, y) + 0.05 / 2 * scaled.square().sum()
    for gradient in torch.autograd.grad(loss, (scaled, offset)):
        assert float(gradient.abs().max()) < 1e-5


def test_the_predictions_are_those_of_scikit_learn_on_all_dimensions():
    """A second way to the same probabilities, without the few dimensions that the support spans."""
    z, y = blobs(3, 3, 30)
    x, _ = blobs(3, 5, 30, seed=1)
    logits = learner(3, 30, penalty=0.02).adapt(Support(x=z[None], y=y[None], way=3))(x[None])[0]
    unit = float((z - z.mean(0)).square().sum(-1).mean().sqrt())
    model = LogisticRegression(C=1 / (0.02 * len(z)), tol=1e-10, max_iter=10000)
    model.fit(((z - z.mean(0)) / unit).numpy(), y.numpy())
    expected = model.predict_proba(((x - z.mean(0)) / unit).numpy())
    assert np.allclose(logits.softmax(-1).numpy(), expected, atol=1e-4)


def test_shift_and_unit_of_the_embeddings_do_not_matter():
    """The same penalty is right for any encoder."""
    z, y = blobs(3, 2, 8)
    x, _ = blobs(3, 2, 8, seed=1)
    probe = learner(3, 8, penalty=0.1)
    one = probe.adapt(Support(x=z[None], y=y[None], way=3))(x[None])
    other = probe.adapt(Support(x=100 * z[None] + 7, y=y[None], way=3))(100 * x[None] + 7)
    assert torch.allclose(one, other, atol=1e-6)


def test_the_penalty_is_the_best_on_left_out_examples():
    """A naive loop over penalties and folds, with fits that start from 0, has the same losses and the same choice."""
    chosen = set()
    for seed, spread in ((0, 0.3), (1, 1.0), (2, 3.0)):
        z, y = blobs(3, 5, 6, seed=seed, spread=spread)
        fold = class_folds(y, z.norm(dim=-1), 5).numpy()
        u, labels = z.numpy(), y.numpy()
        naive = []
        for penalty in PENALTIES:
            total = 0.0
            for f in range(5):
                W, b, _ = fitted(u[fold != f], labels[fold != f], 3, penalty)
                logits = torch.from_numpy(u[fold == f] @ W.T + b)
                total += float(F.cross_entropy(logits, y[torch.from_numpy(fold == f)], reduction="sum"))
            naive.append(total)
        assert np.allclose(left_out_loss(u, labels, 3, fold, PENALTIES), naive, rtol=0.02, atol=0.05)
        best = best_penalty(u, labels, 3, fold, default=7.0)
        assert best == PENALTIES[int(np.argmin(naive))]
        chosen.add(best)
    assert len(chosen) > 1  # the data decide


def test_one_example_a_class_has_the_default_penalty():
    """Nothing can be left out, so nothing is estimated."""
    z, y = blobs(4, 1, 6)
    one = learner(4, 6, default=0.3).probe(z, y, 4)
    other = learner(4, 6, penalty=0.3, default=0.01).probe(z, y, 4)
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[0], learner(4, 6).probe(z, y, 4)[0])


def test_a_strong_penalty_gives_even_probabilities_and_a_weak_one_sure_ones():
    """The two limits of the objective, at the examples of the support themselves."""
    z, y = blobs(3, 3, 20)
    support = Support(x=z[None], y=y[None], way=3)
    for penalty, low, high in ((1e4, 0.33, 0.34), (1e-6, 0.99, 1.0)):
        p = learner(3, 20, penalty=penalty).adapt(support)(z[None])[0].softmax(-1)[torch.arange(9), y]
        assert low < float(p.min()) <= float(p.max()) <= high


def test_equal_embeddings_are_no_error():
    """An encoder that maps everything to one point leaves nothing to tell apart."""
    z, y = torch.ones(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    logits = learner(3, 4).adapt(Support(x=z[None], y=y[None], way=3))(z[None])
    assert torch.allclose(logits.softmax(-1), torch.full((1, 6, 3), 1 / 3, dtype=torch.float64), atol=1e-4)


def test_training_changes_nothing():
    """By default there are no iterations, and if there are some, the encoder is what it was."""
    assert LinearProbe.training_defaults.iterations == 0
    tasks = kshot.testing.sample_tasks.classification()
    probe = LinearProbe(tasks.spec, encoder="mlp", width=4)
    before = {name: t.clone() for name, t in probe.state_dict().items()}
    metrics = Engine(probe, tasks).train(2)
    assert metrics["accuracy"] > 0.4
    assert all(torch.equal(t, before[name]) for name, t in probe.state_dict().items())


@pytest.mark.parametrize("wrong", [{"penalty": 0.0}, {"penalty": math.nan}, {"default": -1.0}, {"folds": 1}])
def test_wrong_options_are_refused(wrong):
    """Before anything is computed, with what was expected."""
    with pytest.raises(OptionError, match=r"linear-probe: got .*, expected"):
        learner(3, 4, **wrong)


@pytest.mark.parametrize("module", ["linear_probe", "logistic"])
def test_the_examples_in_docstrings_run(module):
    """A wrong example is worse than none."""
    result = doctest.testmod(sys.modules[f"kshot_linear_probe.{module}"])
    assert (result.failed, result.attempted > 0) == (0, True)
