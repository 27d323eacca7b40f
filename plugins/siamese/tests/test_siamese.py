"""Siamese networks: the equations by hand and by a naive second way, and that they learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import ClassificationTasks, Engine, Pool, Support
from kshot.errors import OptionError
from kshot.protocols import Embeds
from kshot.randomness import episode_keys, normal
from kshot_siamese import Siamese
from kshot_siamese.losses import (
    contrastive_losses,
    energy,
    koch_logits,
    koch_probability,
    mean_over,
    pairs,
)

SPEC = kshot.TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)


def tasks(**shape: int) -> ClassificationTasks:
    """Classes that differ in 4 of 12 directions; the other 8 are louder noise."""

    def pool(split: str) -> Pool:
        keys = episode_keys(0, split, range(120))
        centres = np.zeros((120, 12))
        centres[:, :4] = normal(keys, "centre", 4)
        noise = normal(keys, "noise", 30 * 12).reshape(120, 30, 12) * np.where(np.arange(12) < 4, 0.3, 1.5)
        return Pool.of((centres[:, None] + noise).reshape(-1, 12).astype(np.float32), np.repeat(np.arange(120), 30))

    return ClassificationTasks({s: pool(s) for s in ("train", "val", "test")}, **{"way": 5, "shot": 1, **shape})


def in_float64(episode: kshot.Episode) -> kshot.Episode:
    return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def plain(**options: Any) -> Siamese:
    """Embeddings are the inputs."""
    return Siamese(SPEC, encoder=nn.Flatten(), **options).eval()


# --- The equations ------------------------------------------------------------------------------------------------


def test_energy_is_the_euclidean_distance_and_does_not_mind_the_order() -> None:
    """3, 4, 5, whichever of the two comes first."""
    a, b = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    assert energy(a, b).tolist() == energy(b, a).tolist() == [5.0, 0.0]


@pytest.mark.parametrize("genuine", [True, False])
def test_equal_inputs_have_a_finite_gradient(genuine: bool) -> None:
    """The square root's own gradient at 0 is infinite, and times 0 it is NaN."""
    a = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    contrastive_losses(energy(a, b), torch.tensor(genuine), 1.0).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.tolist() == b.grad.tolist() == [0.0, 0.0]


def test_contrastive_loss_by_hand() -> None:
    """E^2 of genuine pairs at any distance; (1 - E)^2 of imposters up to the margin, and 0 from there on."""
    energies = torch.tensor([0.0, 0.5, 3.0, 0.0, 0.25, 1.0, 7.0])
    genuine = torch.tensor([True, True, True, False, False, False, False])
    assert contrastive_losses(energies, genuine, 1.0).tolist() == [0.0, 0.25, 9.0, 1.0, 0.5625, 0.0, 0.0]
    assert contrastive_losses(energies, genuine, 2.0).tolist() == [0.0, 0.25, 9.0, 4.0, 3.0625, 1.0, 0.0]


def test_koch_s_probability_by_hand() -> None:
    """sigmoid(2 * 1 - 1 * 3) and, for equal inputs, 1/2; swapping the pair changes nothing."""
    a, b, alpha = torch.tensor([0.0, 5.0]), torch.tensor([1.0, 2.0]), torch.tensor([2.0, -1.0])
    assert float(koch_logits(a, b, alpha)) == -1.0
    assert float(koch_probability(a, b, alpha)) == pytest.approx(1 / (1 + math.e))
    assert torch.equal(koch_probability(a, b, alpha), koch_probability(b, a, alpha))
    assert float(koch_probability(a, a, alpha)) == 0.5


def test_pairs_are_all_pairs_once() -> None:
    """Four examples, six pairs; genuine where the labels agree, in each episode by its own labels."""
    first, second, genuine = pairs(torch.tensor([[0, 1, 0, 1], [1, 1, 1, 0]]))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert genuine.int().tolist() == [[0, 1, 0, 0, 1, 0], [1, 1, 0, 1, 0, 0]]


def test_averages_by_hand() -> None:
    """Two genuine pairs (1 and 3) and four imposters (0, 0, 4 and 2), of which two are within the margin."""
    losses = torch.tensor([1.0, 3.0, 0.0, 0.0, 4.0, 2.0])
    genuine = torch.tensor([True, True, False, False, False, False])
    assert float(mean_over(losses, genuine, "all")) == pytest.approx(10 / 6)
    assert float(mean_over(losses, genuine, "balanced")) == 2 + 1.5
    assert float(mean_over(losses, genuine, "active")) == 2 + 3
    touching = torch.tensor([1.0, 3.0, 1e-14, 0.0, 4.0, 2.0])  # an imposter at the margin but for rounding
    assert float(mean_over(touching, genuine, "active")) == 2 + 3
    nothing = torch.zeros(6)
    assert float(mean_over(nothing, genuine, "active")) == 0.0
    assert float(mean_over(losses[2:], genuine[2:], "active")) == 3.0


# --- The learner --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["active", "balanced", "all"])
def test_the_contrastive_training_loss_is_the_naive_one(average: str) -> None:
    """In float64, pair by pair in plain loops, with its gradient; over support and query, averaged in each task."""
    t = tasks(way=4, shot=2, query=2)
    learner = kshot.learner("siamese", t.spec, seed=1, average=average).double()
    episodes = in_float64(t.sample("train", range(3)))
    reported = learner.train().meta_gradient(episodes)
    gradients = [p.grad.clone() for p in learner.parameters()]
    learner.zero_grad()
    total: Any = 0.0
    for b in range(3):
        x, y = (torch.cat([getattr(episodes.support, n)[b], getattr(episodes.query, n)[b]]) for n in "xy")
        z = learner.encoder.net(x)
        z = z / z.norm(dim=1, keepdim=True)
        same, other = [], []
        for i in range(len(y)):
            for j in range(i):
                e = ((z[i] - z[j]) ** 2).sum().sqrt()
                if y[i] == y[j]:
                    same.append(e**2)
                elif e < 1:
                    other.append((1 - e) ** 2)
                elif average != "active":
                    other.append(0 * e)
        if average == "all":
            loss = (sum(same) + sum(other)) / (len(same) + len(other))
        else:
            loss = sum(same) / len(same) + sum(other) / len(other)
        total = total + loss / 3
    total.backward()
    assert float(reported["loss"]) == pytest.approx(float(total.detach()), rel=1e-10)
    for mine, naive in zip(gradients, (p.grad for p in learner.parameters()), strict=True):
        assert torch.allclose(mine, naive, atol=1e-10)


def test_koch_s_training_loss_is_the_naive_one() -> None:
    """Binary cross-entropy -log p of genuine pairs and -log(1 - p) of imposters, each sort averaged."""
    t = tasks(way=3, shot=2, query=1)
    learner = kshot.learner("siamese", t.spec, seed=1, loss="koch", unit_length=False).double()
    e = in_float64(t.sample("train", [0]))
    reported = learner.train().meta_gradient(e)
    x, y = torch.cat([e.support.x[0], e.query.x[0]]), torch.cat([e.support.y[0], e.query.y[0]])
    with torch.no_grad():
        z = learner.encoder.net(x)
        sums: dict[bool, list[float]] = {True: [], False: []}
        for i in range(len(y)):
            for j in range(i):
                odds = sum(float(w * abs(a - b)) for w, a, b in zip(learner.weights, z[i], z[j], strict=True))
                p = 1 / (1 + math.exp(-odds - float(learner.bias)))
                sums[bool(y[i] == y[j])].append(-math.log(p if y[i] == y[j] else 1 - p))
    naive = sum(sum(v) / len(v) for v in sums.values())
    assert float(reported["loss"]) == pytest.approx(naive, rel=1e-9)
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in learner.parameters())


def test_a_query_belongs_to_the_class_of_its_nearest_support_example() -> None:
    """Not to that of the nearest mean: by hand, with two shots."""
    support = Support.of(torch.tensor([[0.0, 0.0], [10.0, 0.0], [3.0, 0.0], [4.0, 0.0]]), [0, 0, 1, 1])
    logits = plain(unit_length=False).adapt(support)(torch.tensor([[[9.0, 0.0], [3.0, 4.0]]]))
    assert logits.tolist() == [[[-1.0, -5.0], [-5.0, -4.0]]]


def test_koch_s_logits_are_the_log_odds_of_the_nearest_example() -> None:
    """b + sum_j alpha_j |h1_j - h2_j|, by hand with alpha -1 and b 1, as they are before training."""
    support = Support.of(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), [0, 1])
    logits = plain(loss="koch", unit_length=False).adapt(support)(torch.tensor([[[3.0, 0.0]]]))
    assert logits.tolist() == [[[-2.0, -3.0]]]


def test_unit_length_leaves_only_directions() -> None:
    """Inputs on one ray are equal, opposite ones are 2 apart, and nothing is farther."""
    learner = plain()
    z = learner.embed(torch.tensor([[3.0, 0.0], [0.1, 0.0], [-7.0, 0.0], [0.0, 2.0]]))
    assert torch.allclose(z.norm(dim=1), torch.ones(4))
    assert learner.distance(z[[0, 0, 0]], z[1:]).tolist() == pytest.approx([0.0, 2.0, math.sqrt(2)])


@pytest.mark.parametrize("loss", ["contrastive", "koch"])
def test_the_distance_of_a_pair_is_that_by_which_it_classifies(loss: str) -> None:
    """``embed`` and ``distance`` verify pairs by the very same numbers; leading axes are anybody's; order is not."""
    t = tasks()
    learner = kshot.learner("siamese", t.spec, seed=2, loss=loss)
    e = t.sample("test", [0, 1])
    assert isinstance(learner, Embeds)
    with torch.no_grad():
        logits = learner.adapt(e.support)(e.query.x)
        a, b = learner.embed(e.query.x), learner.embed(e.support.x)
        found = -learner.distance(a[:, :, None], b[:, None])
        assert torch.allclose(found, logits, atol=1e-6)
        assert torch.equal(learner.distance(a[0, 0], b[0, 0]), learner.distance(b[0, 0], a[0, 0]))
        assert torch.allclose(learner.embed(e.query.x[1, 3]), a[1, 3], atol=1e-6)


def test_zero_embeddings_of_unit_length_do_no_harm() -> None:
    """A net whose ReLUs are all dead gives zeros, which have no direction."""
    t = tasks()
    learner = kshot.learner("siamese", t.spec)
    for p in learner.parameters():
        nn.init.zeros_(p)
    metrics = learner.train().meta_gradient(t.sample("train", [0]))
    assert all(math.isfinite(float(v)) for v in metrics.values())
    assert all(bool(p.grad.isfinite().all()) for p in learner.parameters() if p.grad is not None)


def test_accuracy_is_the_share_of_pairs_on_their_side() -> None:
    """By hand: embeddings 0, 0.7 | 0.3, 2 on a line, half the margin is 0.5: both sorts of pairs count alike."""
    spec = kshot.TaskSpec(kind="classification", input_shape=(1,), way=2, shot=1, query=1)
    learner = Siamese(spec, encoder=nn.Sequential(nn.Flatten(), nn.Linear(1, 1)), unit_length=False)
    nn.init.ones_(learner.encoder.net[1].weight)
    nn.init.zeros_(learner.encoder.net[1].bias)
    support = Support.of(torch.tensor([[0.0], [0.3]]), [0, 1])
    episode = kshot.Episode(support, kshot.Examples(torch.tensor([[[0.7], [2.0]]]), torch.tensor([[0, 1]])))
    # genuine: 0.7 and 1.7 (wrong); imposters: 0.3, 0.4 (wrong), 2, 1.3 (right)
    assert float(learner.meta_gradient(episode)["accuracy"]) == pytest.approx((0 / 2 + 2 / 4) / 2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"loss": "triplet"}, "expected 'contrastive' or 'koch'"),
        ({"average": "hard"}, "expected 'auto', 'active', 'balanced' or 'all'"),
        ({"loss": "koch", "average": "active"}, "got average='active' with loss='koch', expected 'balanced' or 'all'"),
        ({"margin": 0.0}, "got margin=0.0, expected a positive number"),
        ({"margin": 2.5}, "at most 2 with embeddings of unit length"),
        ({"margin": math.nan}, "got margin=nan"),
    ],
)
def test_impossible_options_are_told(options: dict[str, Any], told: str) -> None:
    """When it is built, whoever builds it."""
    with pytest.raises(OptionError, match=told):
        Siamese(SPEC, **options)
    assert Siamese(SPEC, margin=2.5, unit_length=False).margin == 2.5


# --- That it learns -----------------------------------------------------------------------------------------------


def trained(loss: str, seed: int) -> float:
    t = tasks()
    learner = kshot.learner("siamese", t.spec, seed=seed, loss=loss)
    engine = Engine(learner, tasks(way=20, query=5), optimizer={"lr": 3e-3})
    engine.train(200)
    return engine.evaluate(300, tasks=t).mean


def test_pixels_alone_are_far_below() -> None:
    """What the two below are to be compared with: the distance of the inputs themselves."""
    t = tasks()
    raw = Siamese(t.spec, encoder=nn.Flatten(), unit_length=False)
    assert Engine(raw, t).evaluate(300).mean < 0.36


@pytest.mark.parametrize(("loss", "least"), [("contrastive", 0.896), ("koch", 0.777)])
def test_it_learns_to_tell_unseen_classes_apart(loss: str, least: float) -> None:
    """Held to mean - 3 sigma of 5 seeds: contrastive 90.1 %, sigma 0.16; koch 85.9 %, sigma 2.7."""
    assert trained(loss, 0) > least
