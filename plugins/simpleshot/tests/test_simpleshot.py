"""SimpleShot: the transformations by hand, the mean that is learned, a naive second implementation, and limits."""

import doctest
import math
import sys

import pytest
import torch
import torch.nn.functional as F

import kshot
from kshot import Engine, Support, TaskSpec
from kshot.errors import OptionError
from kshot.functional import class_means, prototypical_logits
from kshot.testing import sample_tasks
from kshot_simpleshot import SimpleShot

SPEC = TaskSpec(kind="classification", input_shape=(6,), way=3, shot=2, query=4)


def tasks(**options):
    """Return small tasks of blobs in six dimensions."""
    return sample_tasks.classification(way=3, shot=2, query=4, **options)


def in_float64(value):
    """Convert the inputs of an episode to float64."""
    return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, value)


def on_embeddings(**options):
    """Return a learner for which the inputs are the embeddings."""
    return SimpleShot(SPEC, encoder="identity", **options).double()


def test_a_case_by_hand():
    """The mean (1, 1) is subtracted: the support becomes (1, 0), (0, 1) and (0, -1), all of length 1, so the centroid
    of the second class is (0, 0), which is not scaled again. The query (3, 1) becomes (1, 0), at the squared distances
    0 and 1.
    """
    spec = TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1)
    learner = SimpleShot(spec, encoder="identity", scale=2.0)
    learner.mean.fill_(1.0)
    learner.seen.fill_(1)
    predict = learner.adapt(Support.of([[5.0, 1.0], [1.0, 2.0], [1.0, -6.0]], [0, 1, 1]))
    assert torch.allclose(predict(torch.tensor([[[3.0, 1.0]]])), torch.tensor([[[0.0, -2.0]]]), atol=1e-6)


def test_without_a_transformation_it_is_a_prototypical_network():
    """UN has the logits of Snell et al., times the scale."""
    e = in_float64(tasks().sample("test", range(3)))
    logits = on_embeddings(transform="UN", scale=1.0).adapt(e.support)(e.query.x)
    expected = prototypical_logits(e.query.x, class_means(e.support.x, e.support.y, 3))
    assert torch.allclose(logits, expected, atol=1e-10)


def test_the_length_of_an_embedding_does_not_matter():
    """L2N removes it; CL2N removes that of the difference from the mean, so a common shift does not matter either."""
    e = in_float64(tasks().sample("test", [0]))
    longer = torch.linspace(0.5, 2.0, e.query.x.shape[1], dtype=torch.float64).view(1, -1, 1)
    plain = on_embeddings(transform="L2N").adapt(e.support)
    assert torch.allclose(plain(e.query.x * longer), plain(e.query.x), atol=1e-10)
    far = kshot.episode.map_tensors(lambda t: t + 7.0 if t.is_floating_point() else t, e)
    centred = on_embeddings()
    assert torch.allclose(centred.adapt(far.support)(far.query.x), centred.adapt(e.support)(e.query.x), atol=1e-9)


def test_the_mean_is_that_of_the_training_split():
    """After a hundred meta-batches or fewer, the mean is that of all embeddings that were seen, over support and query.
    Without a training, it is the mean of the support.
    """
    t = tasks()
    learner = SimpleShot(t.spec, encoder="identity")
    e = t.sample("test", [0])
    untrained = learner.adapt(e.support)(e.query.x)
    learner.train()
    seen = []
    for number in range(5):
        batch = t.sample("train", range(2 * number, 2 * number + 2))
        learner.meta_gradient(batch)
        seen.append(torch.cat([batch.support.x, batch.query.x], 1).flatten(0, 1))
    assert torch.allclose(learner.mean, torch.cat(seen).mean(0), atol=1e-6)
    learner.eval()
    for logits, mean in ((untrained, e.support.x.mean(1)), (learner.adapt(e.support)(e.query.x), learner.mean)):
        z = F.normalize(e.support.x[0] - mean, dim=-1)
        q = F.normalize(e.query.x[0] - mean, dim=-1)
        expected = [[-10 * (x - z[e.support.y[0] == c].mean(0)).square().sum() for c in range(3)] for x in q]
        assert torch.allclose(logits[0], torch.tensor(expected), atol=1e-4)


def test_later_the_mean_follows_the_encoder():
    """An encoder that is trained changes, so old embeddings must count less: a step is at least a hundredth."""
    learner = on_embeddings()
    learner.seen.fill_(1000)
    learner.learn_mean(torch.ones(2, 5, 6, dtype=torch.float64))
    assert torch.allclose(learner.mean, torch.full((6,), 0.01, dtype=torch.float64))


def test_the_meta_gradient_is_that_of_a_naive_implementation():
    """A loop over tasks, queries and classes in float64 gives the same loss and gradient."""
    spec = tasks().spec
    torch.manual_seed(0)
    learner = SimpleShot(spec, encoder="linear", width=4, scale=3.0).double()
    e = in_float64(tasks().sample("train", range(3)))
    reported = learner.train().meta_gradient(e)
    gradients = [p.grad.clone() for p in learner.parameters()]
    learner.zero_grad()
    f, total = learner.encoder.net, 0.0
    for b in range(3):
        sx, sy, qx, qy = (t[b] for t in (e.support.x, e.support.y, e.query.x, e.query.y))
        mean = f(sx).mean(0)

        def unit(x, mean=mean):
            return (f(x[None])[0] - mean) / (f(x[None])[0] - mean).norm()

        centroids = [torch.stack([unit(x) for x in sx[sy == c]]).mean(0) for c in range(3)]
        for x, y in zip(qx, qy, strict=True):
            scores = torch.stack([-learner.log_scale.exp() * (unit(x) - c).square().sum() for c in centroids])
            total = total - scores.log_softmax(0)[y] / (3 * len(qx))
    total.backward()
    assert float(reported["loss"]) == pytest.approx(float(total.detach()), rel=1e-10)
    for mine, p in zip(gradients, learner.parameters(), strict=True):
        assert torch.allclose(mine, p.grad, atol=1e-10)


def test_training_makes_probabilities_honest_without_changing_a_decision():
    """Only the scale is trained on embeddings. On other episodes the loss is lower than with the scale of the start."""
    t = tasks()
    learner = SimpleShot(t.spec, encoder="identity", scale=0.5)
    e = t.sample("test", range(40))
    Engine(learner, t).train(100)
    trained = learner.adapt(e.support)(e.query.x).detach()
    with torch.no_grad():
        learner.log_scale.fill_(math.log(0.5))
    start = learner.adapt(e.support)(e.query.x).detach()
    losses = [F.cross_entropy(logits.flatten(0, 1), e.query.y.flatten()) for logits in (trained, start)]
    assert losses[0] < losses[1]
    assert torch.equal(trained.argmax(-1), start.argmax(-1))


@pytest.mark.parametrize("wrong", [{"transform": "l2"}, {"scale": 0.0}, {"scale": math.inf}, {"scale": math.nan}])
def test_wrong_options_are_refused(wrong):
    """Before anything is computed, with what was expected."""
    with pytest.raises(OptionError, match=r"simpleshot: got .*, expected"):
        SimpleShot(SPEC, **wrong)


def test_the_examples_in_docstrings_run():
    """A wrong example is worse than none."""
    result = doctest.testmod(sys.modules["kshot_simpleshot.simpleshot"])
    assert (result.failed, result.attempted > 0) == (0, True)
