"""Tests of prototypical networks: the identities of the paper, and that training works."""

import doctest
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kshot
from kshot import ClassificationTasks, Engine, Pool, Support
from kshot.errors import DataError
from kshot.randomness import episode_keys, normal
from kshot_protonet import ProtoNet


def tasks(attributes: int | None = None, **shape: int) -> ClassificationTasks:
    """Build tasks of classes that differ in 4 of 12 directions; the other 8 directions contain stronger noise.

    The attributes of a class are a linear function of its centre.
    """

    def pool(split: str) -> Pool:
        keys = episode_keys(0, split, range(120))
        centres = np.zeros((120, 12))
        centres[:, :4] = normal(keys, "centre", 4)
        noise = normal(keys, "noise", 30 * 12).reshape(120, 30, 12) * np.where(np.arange(12) < 4, 0.3, 1.5)
        view = normal(episode_keys(0, "view", [0]), "matrix", 4 * (attributes or 1)).reshape(4, -1)
        return Pool.of(
            (centres[:, None] + noise).reshape(-1, 12).astype(np.float32),
            np.repeat(np.arange(120), 30),
            semantics=None if attributes is None else (centres[:, :4] @ view).astype(np.float32),
        )

    return ClassificationTasks({s: pool(s) for s in ("train", "val", "test")}, **{"way": 5, "shot": 1, **shape})


def in_float64(episode: kshot.Episode) -> kshot.Episode:
    """Convert the floating-point tensors of an episode to float64."""
    return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


@pytest.fixture
def learner() -> ProtoNet:
    """Build a learner with an mlp, in float64."""
    t = tasks()
    return kshot.learner("protonet", t.spec, seed=1).double()


def test_predictions_are_those_of_the_linear_classifier(learner):
    """Section 2.3 of the paper: w_c = 2 p_c and b_c = -||p_c||^2, up to a constant per query."""
    e = in_float64(tasks(shot=3).sample("test", [0]))
    logits = learner.eval().adapt(e.support)(e.query.x)[0]
    f = learner.encoder.net
    p = torch.stack([f(e.support.x[0])[e.support.y[0] == c].mean(0) for c in range(5)])
    linear = f(e.query.x[0]) @ (2 * p).T - (p**2).sum(1)
    gap = logits - linear
    assert torch.allclose(gap, gap[:, :1].expand(-1, 5), atol=1e-12)
    assert torch.allclose(logits.softmax(-1), linear.softmax(-1), atol=1e-12)


def test_distance_is_squared_and_summed_over_features():
    """There is no square root and no mean over D. The encoder is the identity, so distances are worked out by hand."""
    spec = kshot.TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)
    learner = ProtoNet(spec, encoder=nn.Flatten())
    support = Support.of(torch.tensor([[0.0, 0.0], [2.0, 0.0], [3.0, 4.0]]), [0, 0, 1])
    logits = learner.eval().adapt(support)(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
    assert logits.tolist() == [[[0.0, -20.0], [-1.0, -25.0]]]


def test_the_training_loss_is_the_papers(learner):
    """A naive loop over algorithm 1 gives the same loss (-log p, averaged over queries and tasks) and gradient."""
    episodes = in_float64(tasks(shot=2, query=3).sample("train", range(3)))
    reported = learner.train().meta_gradient(episodes)
    gradients = [p.grad.clone() for p in learner.parameters() if p.grad is not None]
    learner.zero_grad()
    total = 0.0
    f = learner.encoder.net
    for b in range(3):
        sx, sy, qx, qy = (t[b] for t in (episodes.support.x, episodes.support.y, episodes.query.x, episodes.query.y))
        for x, y in zip(qx, qy, strict=True):
            scores = torch.stack([-((f(x[None])[0] - f(sx[sy == c]).mean(0)) ** 2).sum() for c in range(5)])
            total = total - scores.log_softmax(0)[y] / (3 * len(qx))
    total.backward()
    assert float(reported["loss"]) == pytest.approx(float(total.detach()), rel=1e-10)
    for mine, naive in zip(gradients, (p.grad for p in learner.parameters() if p.grad is not None), strict=True):
        assert torch.allclose(mine, naive, atol=1e-10)


def test_training_reports_the_predictions_for_whole_episodes():
    """In training, batch norm sees support and queries together, so the figures are those of ``transductive``."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6))
    learner = ProtoNet(tasks().spec, encoder=net, normalisation="transductive").double()
    e = in_float64(tasks(shot=2, query=3).sample("train", range(3)))
    logits = learner.eval().adapt(e.support)(e.query.x).detach()
    reported = learner.train().meta_gradient(e)
    expected = F.cross_entropy(logits.flatten(0, 1), e.query.y.flatten())
    assert float(reported["loss"]) == pytest.approx(float(expected), rel=1e-10)
    share = (logits.argmax(-1) == e.query.y).float().mean()
    assert float(reported["accuracy"]) == pytest.approx(float(share))
    assert share != 0.5


def test_zero_shot_prototypes_are_unit_length_and_follow_their_class():
    """Section 2.7: g(v_c) has length 1. The embeddings of queries are not scaled."""
    t = tasks(attributes=6, shot=0)
    learner = kshot.learner("protonet", t.spec)
    e = t.sample("test", [0, 1])
    z = torch.zeros(2, 0, 64)
    p = learner.prototypes(z, e.support)
    assert torch.allclose(p.norm(dim=-1), torch.ones(2, 5))
    assert torch.allclose(p[1, 3], F.normalize(learner.class_encoder(e.support.semantics[1, 3]), dim=0))
    plain = kshot.learner("protonet", tasks().spec)
    with pytest.raises(DataError, match="without semantics, expected one of the two"):
        plain.prototypes(z, e.support)


def test_it_learns_to_tell_unseen_classes_apart():
    """The bound is the mean of 5 seeds less 3 sigma (91.7 %, sigma 0.16). The distance of the inputs reaches 34.7 %."""
    t = tasks()
    engine = Engine(kshot.learner("protonet", t.spec, seed=0), tasks(way=20, query=5))
    engine.train(300)
    raw = Engine(ProtoNet(t.spec, encoder=nn.Flatten()), t).evaluate(300)
    trained = engine.evaluate(300, tasks=t)
    assert raw.mean < 0.40
    assert trained.mean > 0.912


def test_it_learns_unseen_classes_from_their_attributes_alone():
    """The tasks are zero-shot, 5-way; chance is 20 %. The bound is the mean of 5 seeds less 3 sigma (95.9 %, 0.18)."""
    t = tasks(attributes=6, shot=0, query=10)
    engine = Engine(kshot.learner("protonet", t.spec, seed=0), t, meta_batch=4)
    engine.train(300)
    assert engine.evaluate(300).mean > 0.953


def test_normalisation_is_a_stated_policy():
    """With transductive batch norm queries depend on each other. The needs say so, and the result records it."""
    pool = Pool.of(torch.rand(60, 1, 28, 28), np.repeat(np.arange(6), 10))
    t = ClassificationTasks({"train": pool, "test": pool}, way=3, shot=1, query=3)
    for policy, queries in (("inductive", "independent"), ("support", "independent"), ("transductive", "joint")):
        learner = kshot.learner("protonet", t.spec, normalisation=policy, width=8)
        assert learner.needs.queries == queries
        result = Engine(learner, t).evaluate(4)
        assert (result.normalisation, result.queries) == (policy, queries)


def test_building_the_class_encoder_leaves_the_learner_in_training_mode():
    """A new torch module is in training mode, and inferring the length of an embedding must not change that."""
    learner = ProtoNet(tasks(attributes=6, shot=0).spec)
    assert learner.class_encoder is not None
    assert all(m.training for m in learner.modules())


def test_the_examples_in_docstrings_run():
    """A wrong example is worse than none."""
    result = doctest.testmod(sys.modules["kshot_protonet.protonet"])
    assert (result.failed, result.attempted > 0) == (0, True)
