"""Tests of relation networks: pairs, scores and loss by hand, normalisation, the metric of a collapse, and training."""

from __future__ import annotations

import doctest
import itertools
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kshot
from kshot import ClassificationTasks, Engine, Pool
from kshot.errors import DataError, OptionError
from kshot.functional import class_sums
from kshot.randomness import episode_keys, normal
from kshot.testing import sample_tasks
from kshot_relationnet import RelationNet
from kshot_relationnet.networks import conv_encoder, first_layer, relation_module
from kshot_relationnet.relationnet import explained, relation_loss


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


def images(**options: Any) -> kshot.TaskDistribution:
    """Build small tasks of images of 16 x 16."""
    return sample_tasks.classification(input_shape=(1, 16, 16), **options)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Draw standard normal numbers in float64; equal seeds give equal numbers."""
    return torch.from_numpy(normal(episode_keys(seed, "numbers", [0]), "x", math.prod(shape))).view(shape)


def in_float64(episode: kshot.Episode) -> kshot.Episode:
    """Convert the floating-point tensors of an episode to float64."""
    return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


# --- By hand ------------------------------------------------------------------------------------------------------


def test_maps_of_a_class_are_summed() -> None:
    """They are not averaged. Class 0 has two examples, class 1 has one, and class 2 has none and gets 0."""
    z = torch.tensor([[[1.0, 2.0], [10.0, 20.0], [3.0, 4.0]]])
    assert class_sums(z, torch.tensor([[0, 1, 0]]), 3).tolist() == [[[4.0, 6.0], [10.0, 20.0], [0.0, 0.0]]]


def test_sum_and_mean_are_equal_at_one_shot_and_differ_at_two() -> None:
    """So a learner that was trained at one shot can be used with either."""
    for shot, same in ((1, True), (2, False)):
        t = tasks(shot=shot)
        e = t.sample("test", [0])
        answers = [kshot.learner("relationnet", t.spec, combine=c).adapt(e.support)(e.query.x) for c in ("sum", "mean")]
        assert torch.allclose(*answers, atol=1e-5) == same
    learner = kshot.learner("relationnet", t.spec, combine="mean")
    z = numbers(1, 10, 64)
    naive = torch.stack([z[0][e.support.y[0] == c].mean(0) for c in range(5)])
    assert torch.allclose(learner.classes(z, e.support)[0], naive, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["maps", "vectors"])
def test_the_first_layer_is_that_of_the_concatenation(form: str) -> None:
    """W_s s + W_q q equals the layer itself on every pair [s, q], with the class first, in the order of the queries."""
    shape = (3, 5, 4) if form == "maps" else (3,)
    layer = nn.Conv2d(6, 7, 3, padding=1).double() if form == "maps" else nn.Linear(6, 7).double()
    classes, queries = numbers(2, 4, *shape, seed=1), numbers(2, 5, *shape, seed=2)
    found = first_layer(classes, queries, layer.weight, layer.bias)
    for b in range(2):
        naive = [layer(torch.cat([s, q])[None])[0] for q in queries[b] for s in classes[b]]
        assert torch.allclose(found[b], torch.stack(naive), rtol=0, atol=1e-12)


def test_the_loss_by_hand() -> None:
    """Two queries and three ways: every pair has the same weight."""
    scores, y = torch.tensor([[0.9, 0.2, 0.0], [0.5, 0.5, 1.0]]), torch.tensor([0, 2])
    assert float(relation_loss(scores, y)) == pytest.approx((0.01 + 0.04 + 0 + 0.25 + 0.25 + 0) / 6)


@pytest.mark.parametrize("way", [2, 5, 20])
def test_the_best_constant_explains_nothing(way: int) -> None:
    """It is 1/N, with loss (1/N)(1 - 1/N): 0.16 for 5 ways. Other constants are worse; perfect scores give 1."""
    y = torch.arange(way)
    losses = {k: relation_loss(torch.full((way, way), k, dtype=torch.float64), y) for k in (1 / way, 0.0, 0.5, 1.0)}
    assert float(losses[1 / way]) == pytest.approx((1 - 1 / way) / way)
    assert float(explained(losses[1 / way], way)) == pytest.approx(0, abs=1e-12)
    assert all(float(explained(losses[k], way)) <= 1e-12 for k in losses)
    assert float(explained(relation_loss(torch.eye(way), y), way)) == 1
    assert float(explained(torch.tensor(0.3), 1)) == 0  # with one class there is nothing to explain


def test_the_softmax_of_logits_is_the_probability_given_exactly_one_relation() -> None:
    """The probability is worked out from the three outcomes of independent relations in which exactly one is true."""
    logits = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    r = logits.sigmoid().tolist()
    chance = []
    for c in range(3):
        outcome = [i == c for i in range(3)]
        chance.append(math.prod(p if holds else 1 - p for p, holds in zip(r, outcome, strict=True)))
    assert logits.softmax(0).tolist() == pytest.approx([p / sum(chance) for p in chance])


# --- The networks ---------------------------------------------------------------------------------------------------


def test_the_networks_are_those_of_figure_2() -> None:
    """Images of 28 x 28 give maps of 5 x 5; the relation module pools them to 1 x 1 and has 8 hidden units."""
    maps = conv_encoder((1, 28, 28))(torch.zeros(2, 1, 28, 28))
    assert maps.shape == (2, 64, 5, 5)
    first, rest = relation_module((64, 5, 5))
    assert isinstance(first, nn.Conv2d)
    assert (first.in_channels, first.out_channels, first.padding) == (128, 64, (1, 1))
    widths = [(m.in_features, m.out_features) for m in rest if isinstance(m, nn.Linear)]
    assert widths == [(64, 8), (8, 1)]
    assert rest(first(torch.zeros(3, 128, 5, 5))).shape == (3, 1)


@pytest.mark.parametrize("map_shape", [(64, 5, 5), (64,)])
def test_the_relation_module_has_batch_norm_and_positive_biases(map_shape: tuple[int, ...]) -> None:
    """Without two batch norm layers and biases of 1, training collapses to a constant."""
    _, rest = relation_module(map_shape)
    assert sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in rest) == 2
    assert rest[-3].bias.tolist() == [1.0] * 8


@pytest.mark.parametrize("size", [(1, 10, 10), (1, 16, 16), (3, 20, 33), (3, 84, 84)])
def test_images_of_other_sizes_are_accepted(size: tuple[int, int, int]) -> None:
    """Pooling stops before the map of a small image is empty."""
    t = sample_tasks.classification(input_shape=size)
    learner = kshot.learner("relationnet", t.spec, width=4)
    e = t.sample("test", [0])
    assert len(learner.map_shape) == 3
    assert learner.adapt(e.support)(e.query.x).shape == (1, 9, 3)


def test_a_user_s_encoder_must_return_maps_or_vectors() -> None:
    """The relation module compares nothing else. The error is raised when the learner is built."""
    t = images()
    e = t.sample("test", [0])
    for net in (nn.Conv2d(1, 5, 3, stride=4), nn.Flatten()):
        learner = RelationNet(t.spec, encoder=net).eval()
        assert learner.adapt(e.support)(e.query.x).shape == (1, 9, 3)
    with pytest.raises(
        DataError,
        match=r"got embeddings of shape \(16, 16\) from the encoder, expected maps \(C, H, W\) or vectors \(D,\)",
    ):
        RelationNet(t.spec, encoder=nn.Flatten(1, 2))


def test_unknown_options_are_refused() -> None:
    """The message names the option, and nothing has been computed."""
    spec = tasks().spec
    with pytest.raises(OptionError, match="got combine='max', expected 'sum' or 'mean'"):
        RelationNet(spec, combine="max")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"got encoder='conv4', expected 'auto', 'conv', 'mlp' or an nn\.Module"):
        RelationNet(spec, encoder="conv4")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"got input_shape=\(12,\), expected \(channels, height >= 10, width >= 10\)"):
        RelationNet(spec, encoder="conv")
    with pytest.raises(
        OptionError, match="got normalisation='none', expected 'inductive', 'support' or 'transductive'"
    ):
        RelationNet(spec, normalisation="none")  # type: ignore[arg-type]


# --- The learner ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["vectors", "images"])
def test_the_training_loss_is_the_papers(form: str) -> None:
    """A loop over concatenated pairs gives the same loss and gradient; batch norm sees all pairs of an episode."""
    t = tasks(shot=2, query=2) if form == "vectors" else images()
    learner = kshot.learner("relationnet", t.spec, seed=1, width=6).double()
    episodes = in_float64(t.sample("train", range(2)))
    start = {n: b.clone() for n, b in learner.named_buffers()}
    reported = learner.train().meta_gradient(episodes)
    gradients = [p.grad.clone() for p in learner.parameters()]
    learner.zero_grad()
    learner.load_state_dict({**learner.state_dict(), **start})
    total: Any = 0.0
    N, right = episodes.support.way, 0
    for b in range(2):
        sx, sy, qx, qy = (v[b] for v in (episodes.support.x, episodes.support.y, episodes.query.x, episodes.query.y))
        z = learner.encoder.net(torch.cat([sx, qx]))
        maps, queries = z[: len(sx)], z[len(sx) :]
        sums = [sum(m for m, label in zip(maps, sy, strict=True) if label == c) for c in range(N)]
        pairs = torch.stack([torch.cat([s, q]) for q in queries for s in sums])
        scores = learner.relation.net(learner.first(pairs)).sigmoid().view(len(qx), N)
        for q, c in itertools.product(range(len(qx)), range(N)):
            total = total + (scores[q, c] - float(qy[q] == c)) ** 2 / (2 * len(qx) * N)
        right += int((scores.argmax(1) == qy).sum())
    total.backward()
    assert float(reported["loss"]) == pytest.approx(float(total.detach()), rel=1e-10)
    assert float(reported["accuracy"]) == pytest.approx(right / episodes.query.y.numel())
    assert float(reported["explained"]) == pytest.approx(1 - float(total.detach()) / ((1 - 1 / N) / N))
    for mine, p in zip(gradients, learner.parameters(), strict=True):
        assert torch.allclose(mine, p.grad, atol=1e-10)


def test_a_collapse_shows_in_the_metrics() -> None:
    """A relation module with the score 1/N for every pair has a low loss, 0.16 for 5 ways, but ``explained`` is 0."""
    t = tasks()
    learner = kshot.learner("relationnet", t.spec)
    last = learner.relation.net[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, math.log(1 / 4))  # the logit of 1/5
    reported = learner.train().meta_gradient(t.sample("train", [0]))
    assert float(reported["loss"]) == pytest.approx(0.16)
    assert float(reported["explained"]) == pytest.approx(0, abs=1e-5)
    assert float(reported["accuracy"]) == pytest.approx(0.2)


def test_in_zero_shot_tasks_the_semantic_vector_replaces_the_support() -> None:
    """Its embedding is a map of the same shape. Without semantics, an empty support is refused."""
    for t, shape in ((tasks(attributes=6, shot=0), (64,)), (images(shot=0, semantics=5), (64, 2, 2))):
        learner = kshot.learner("relationnet", t.spec)
        e = t.sample("test", [0, 1])
        classes = learner.classes(torch.zeros(2, 0, *shape), e.support)
        assert classes.shape == (2, e.support.way, *shape)
        one = learner.class_encoder(e.support.semantics[1, 2][None])[0]
        assert torch.allclose(classes[1, 2].flatten(), one, atol=1e-6)
    plain = kshot.learner("relationnet", tasks().spec)
    with pytest.raises(DataError, match="without semantics, expected one of the two"):
        plain.classes(torch.zeros(1, 0, 64), e.support)


def test_a_learner_predicts_for_another_way_than_it_was_built_for() -> None:
    """A score belongs to a pair, so there is no output layer of a fixed size."""
    learner = kshot.learner("relationnet", tasks().spec)
    for way in (12, 2):
        e = tasks(way=way).sample("test", [0, 1])
        assert learner.adapt(e.support)(e.query.x).shape == (2, 15 * way, way)


# --- Normalisation --------------------------------------------------------------------------------------------------


def warmed(policy: str) -> tuple[RelationNet, kshot.Episode]:
    """Build a learner in float64 whose running statistics have moved, and an episode."""
    t = images()
    learner = kshot.learner("relationnet", t.spec, width=4, normalisation=policy).double()
    for i in range(3):
        learner.train().meta_gradient(in_float64(t.sample("train", [i])))
    return learner.eval(), in_float64(t.sample("test", [0]))


def by_statistics_of(net: nn.Module, of: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``net(of)`` normalised by itself, and ``net(x)`` by means and unbiased variances of ``of``, by layers."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            mean, scale, shift = (v[:, None, None] for v in (of.mean((0, 2, 3)), m.weight, m.bias))
            own, seen = (of.var((0, 2, 3), unbiased=u)[:, None, None] + m.eps for u in (False, True))
            of, x = (of - mean) / own.sqrt() * scale + shift, (x - mean) / seen.sqrt() * scale + shift
        elif not list(m.children()):
            of, x = m(of.clone()), m(x.clone())
    return of, x


def test_inductive_statistics_are_those_of_training() -> None:
    """Encoder and relation module use running means and variances, so that queries are independent."""
    learner, e = warmed("inductive")
    assert learner.needs.queries == "independent"
    moved = [b for n, b in learner.named_buffers() if n.endswith("running_mean")]
    assert len(moved) == 6
    assert all(bool((b != 0).any()) for b in moved)
    with torch.no_grad():
        z_s, z_q = learner.encoder.net(e.support.x[0]), learner.encoder.net(e.query.x[0])
        sums = class_sums(z_s.flatten(1), e.support.y[0], 3).view(3, *z_s.shape[1:])
        pairs = torch.stack([torch.cat([s, q]) for q in z_q for s in sums])
        naive = learner.relation.net(learner.first(pairs)).view(-1, 3)
        assert torch.allclose(learner.adapt(e.support)(e.query.x)[0], naive, rtol=0, atol=1e-12)


def test_transductive_statistics_are_those_of_this_episode() -> None:
    """They are those of training: all images of the episode, and the pairs of all queries with all classes."""
    learner, e = warmed("transductive")
    assert learner.needs.queries == "joint"
    with torch.no_grad():
        answers = learner.adapt(e.support)(e.query.x)
    loss = learner.train().meta_gradient(e)["loss"]
    assert float(relation_loss(answers.sigmoid(), e.query.y)) == pytest.approx(float(loss), rel=1e-10)


def test_support_statistics_are_those_of_pairs_within_the_support() -> None:
    """In the encoder: of the support's images. In the relation module: of each support example with each class."""
    learner, e = warmed("support")
    assert learner.needs.queries == "independent"
    with torch.no_grad():
        answers = learner.adapt(e.support)(e.query.x)[0]
        z_s, z_q = by_statistics_of(learner.encoder.net, e.support.x[0], e.query.x[0])
        sums = class_sums(z_s.flatten(1), e.support.y[0], 3).view(3, *z_s.shape[1:])
        own = learner.first(torch.stack([torch.cat([s, z]) for z in z_s for s in sums]))
        pairs = learner.first(torch.stack([torch.cat([s, q]) for q in z_q for s in sums]))
        naive = by_statistics_of(learner.relation.net, own, pairs)[1].view(-1, 3)
        assert torch.allclose(answers, naive, rtol=0, atol=1e-10)
        alone = torch.cat([learner.adapt(e.support)(e.query.x[:, i : i + 1]) for i in range(9)], 1)[0]
        assert torch.allclose(answers, alone, rtol=0, atol=1e-12)


def test_without_a_support_there_are_no_support_statistics() -> None:
    """Zero-shot tasks are refused under ``support``, even if only the relation module has batch norm."""
    for t in (images(shot=0, semantics=5), tasks(attributes=6, shot=0)):
        learner = kshot.learner("relationnet", t.spec, width=4, normalisation="support")
        e = t.sample("test", [0])
        with pytest.raises(
            DataError, match="got a support without examples, expected at least one to take statistics from"
        ):
            learner.adapt(e.support)(e.query.x)


def test_the_result_records_which_statistics_were_used() -> None:
    """Published results are transductive, and results of different policies can't be compared."""
    pool = Pool.of(torch.rand(60, 1, 16, 16), np.repeat(np.arange(6), 10))
    t = ClassificationTasks({"train": pool, "test": pool}, way=3, shot=1, query=3)
    for policy, queries in (("inductive", "independent"), ("support", "independent"), ("transductive", "joint")):
        for on in (t, tasks()):
            result = Engine(kshot.learner("relationnet", on.spec, normalisation=policy, width=8), on).evaluate(4)
            assert (result.normalisation, result.queries) == (policy, queries)


# --- That it learns -------------------------------------------------------------------------------------------------


def test_it_learns_to_tell_unseen_classes_apart() -> None:
    """The bounds are means of 5 seeds less 3 sigma: accuracy 88.6 % (chance 20 %, sigma 3.7), explained 0.52 (0.08)."""
    t = tasks()
    engine = Engine(kshot.learner("relationnet", t.spec, seed=0), tasks(way=20, query=5))
    last = engine.train(300)
    assert last["explained"] > 0.27
    assert engine.evaluate(300, tasks=t).mean > 0.774


def test_it_learns_unseen_classes_from_their_attributes_alone() -> None:
    """The tasks are zero-shot, 5-way; chance is 20 %. The bound is the mean of 5 seeds less 3 sigma (96.9 %, 0.07)."""
    t = tasks(attributes=6, shot=0, query=10)
    engine = Engine(kshot.learner("relationnet", t.spec, seed=0), t, meta_batch=4)
    engine.train(300)
    assert engine.evaluate(300).mean > 0.966


def test_the_examples_in_docstrings_run() -> None:
    """A wrong example is worse than none."""
    result = doctest.testmod(sys.modules["kshot_relationnet.relationnet"])
    assert (result.failed, result.attempted > 0) == (0, True)
