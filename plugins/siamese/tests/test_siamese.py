"""Tests of siamese networks: the equations by hand and by naive loops, and that training works."""

from __future__ import annotations

import doctest
import math
import sys
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
    """Build tasks of classes that differ in 4 of 12 directions; the other 8 directions contain stronger noise."""

    def pool(split: str) -> Pool:
        keys = episode_keys(0, split, range(120))
        centres = np.zeros((120, 12))
        centres[:, :4] = normal(keys, "centre", 4)
        noise = normal(keys, "noise", 30 * 12).reshape(120, 30, 12) * np.where(np.arange(12) < 4, 0.3, 1.5)
        return Pool.of((centres[:, None] + noise).reshape(-1, 12).astype(np.float32), np.repeat(np.arange(120), 30))

    return ClassificationTasks({s: pool(s) for s in ("train", "val", "test")}, **{"way": 5, "shot": 1, **shape})


def in_float64(episode: kshot.Episode) -> kshot.Episode:
    """Convert the floating-point tensors of an episode to float64."""
    return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def plain(**options: Any) -> Siamese:
    """Build a learner whose embeddings are the inputs."""
    return Siamese(SPEC, encoder=nn.Flatten(), **options).eval()


# --- The equations ------------------------------------------------------------------------------------------------


def test_energy_is_the_euclidean_distance_in_either_order() -> None:
    """The example is a triangle of sides 3, 4 and 5."""
    a, b = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    assert energy(a, b).tolist() == energy(b, a).tolist() == [5.0, 0.0]


@pytest.mark.parametrize("genuine", [True, False])
def test_equal_inputs_have_a_finite_gradient(genuine: bool) -> None:
    """The derivative of the square root is infinite at 0, and its product with 0 is NaN."""
    a = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    contrastive_losses(energy(a, b), torch.tensor(genuine), 1.0).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.tolist() == b.grad.tolist() == [0.0, 0.0]


def test_contrastive_loss_by_hand() -> None:
    """The loss is E^2 for genuine pairs, and for imposters (margin - E)^2 up to the margin and 0 beyond it."""
    energies = torch.tensor([0.0, 0.5, 3.0, 0.0, 0.25, 1.0, 7.0])
    genuine = torch.tensor([True, True, True, False, False, False, False])
    assert contrastive_losses(energies, genuine, 1.0).tolist() == [0.0, 0.25, 9.0, 1.0, 0.5625, 0.0, 0.0]
    assert contrastive_losses(energies, genuine, 2.0).tolist() == [0.0, 0.25, 9.0, 4.0, 3.0625, 1.0, 0.0]


def test_koch_s_probability_by_hand() -> None:
    """It is sigmoid(2 * 1 - 1 * 3), and 1/2 for equal inputs; the order of the pair does not matter."""
    a, b, alpha = torch.tensor([0.0, 5.0]), torch.tensor([1.0, 2.0]), torch.tensor([2.0, -1.0])
    assert float(koch_logits(a, b, alpha)) == -1.0
    assert float(koch_probability(a, b, alpha)) == pytest.approx(1 / (1 + math.e))
    assert torch.equal(koch_probability(a, b, alpha), koch_probability(b, a, alpha))
    assert float(koch_probability(a, a, alpha)) == 0.5


def test_every_pair_is_listed_once() -> None:
    """Four examples have six pairs; a pair is genuine if its labels are equal in the episode."""
    first, second, genuine = pairs(torch.tensor([[0, 1, 0, 1], [1, 1, 1, 0]]))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert genuine.int().tolist() == [[0, 1, 0, 0, 1, 0], [1, 1, 0, 1, 0, 0]]


def test_averages_by_hand() -> None:
    """The losses are 1 and 3 for genuine pairs, and 0, 0, 4 and 2 for imposters, two of which are within the margin."""
    losses = torch.tensor([1.0, 3.0, 0.0, 0.0, 4.0, 2.0])
    genuine = torch.tensor([True, True, False, False, False, False])
    assert float(mean_over(losses, genuine, "all")) == pytest.approx(10 / 6)
    assert float(mean_over(losses, genuine, "balanced")) == 2 + 1.5
    assert float(mean_over(losses, genuine, "active")) == 2 + 3
    touching = torch.tensor([1.0, 3.0, 1e-14, 0.0, 4.0, 2.0])  # 1e-14 is a rounding error at the margin
    assert float(mean_over(touching, genuine, "active")) == 2 + 3
    nothing = torch.zeros(6)
    assert float(mean_over(nothing, genuine, "active")) == 0.0
    assert float(mean_over(losses[2:], genuine[2:], "active")) == 3.0


# --- The learner --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["active", "balanced", "all"])
def test_the_contrastive_training_loss_is_the_naive_one(average: str) -> None:
    """Plain loops over the pairs of support and query examples give the same loss and gradient."""
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
    """It is the mean of -log p over genuine pairs plus the mean of -log(1 - p) over imposters."""
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
    """The nearest class mean would give another class here. The distances are worked out by hand."""
    support = Support.of(torch.tensor([[0.0, 0.0], [10.0, 0.0], [3.0, 0.0], [4.0, 0.0]]), [0, 0, 1, 1])
    logits = plain(unit_length=False).adapt(support)(torch.tensor([[[9.0, 0.0], [3.0, 4.0]]]))
    assert logits.tolist() == [[[-1.0, -5.0], [-5.0, -4.0]]]


def test_koch_s_logits_are_the_log_odds_of_the_nearest_example() -> None:
    """They are b + sum_j alpha_j |h1_j - h2_j|, by hand with alpha = -1 and b = 1, the values before training."""
    support = Support.of(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), [0, 1])
    logits = plain(loss="koch", unit_length=False).adapt(support)(torch.tensor([[[3.0, 0.0]]]))
    assert logits.tolist() == [[[-2.0, -3.0]]]


def test_with_unit_length_only_directions_matter() -> None:
    """Inputs of the same direction have distance 0, and opposite inputs have the greatest distance, 2."""
    learner = plain()
    z = learner.embed(torch.tensor([[3.0, 0.0], [0.1, 0.0], [-7.0, 0.0], [0.0, 2.0]]))
    assert torch.allclose(z.norm(dim=1), torch.ones(4))
    assert learner.distance(z[[0, 0, 0]], z[1:]).tolist() == pytest.approx([0.0, 2.0, math.sqrt(2)])


@pytest.mark.parametrize("loss", ["contrastive", "koch"])
def test_the_distance_of_a_pair_is_that_by_which_it_classifies(loss: str) -> None:
    """``embed`` and ``distance`` give the numbers that classification uses, with any leading axes, in either order."""
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


def test_zero_embeddings_give_finite_gradients() -> None:
    """A net whose ReLUs are all off returns zeros, which can't be scaled to length 1."""
    t = tasks()
    learner = kshot.learner("siamese", t.spec)
    for p in learner.parameters():
        nn.init.zeros_(p)
    metrics = learner.train().meta_gradient(t.sample("train", [0]))
    assert all(math.isfinite(float(v)) for v in metrics.values())
    assert all(bool(p.grad.isfinite().all()) for p in learner.parameters() if p.grad is not None)


def test_training_sees_whole_episodes() -> None:
    """In training, batch norm has the statistics of support and queries together."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6))
    learner = Siamese(tasks().spec, encoder=net).double().train()
    e = in_float64(tasks(shot=2, query=3).sample("train", [0]))
    x, y = torch.cat([e.support.x, e.query.x], 1), torch.cat([e.support.y, e.query.y], 1)
    first, second, genuine = pairs(y)
    with torch.no_grad():
        z = nn.functional.normalize(net(x[0]), dim=-1)
        losses = contrastive_losses(energy(z[first], z[second]), genuine[0], 1.0)
    expected = mean_over(losses, genuine[0], "active")
    assert float(learner.meta_gradient(e)["loss"]) == pytest.approx(float(expected), rel=1e-10)


def test_accuracy_is_the_balanced_share_of_right_decisions() -> None:
    """The embeddings of the classes are 0 and 0.7, and 0.3 and 2; pairs are accepted below half the margin, 0.5."""
    spec = kshot.TaskSpec(kind="classification", input_shape=(1,), way=2, shot=1, query=1)
    learner = Siamese(spec, encoder=nn.Sequential(nn.Flatten(), nn.Linear(1, 1)), unit_length=False)
    nn.init.ones_(learner.encoder.net[1].weight)
    nn.init.zeros_(learner.encoder.net[1].bias)
    support = Support.of(torch.tensor([[0.0], [0.3]]), [0, 1])
    episode = kshot.Episode(support, kshot.Examples(torch.tensor([[[0.7], [2.0]]]), torch.tensor([[0, 1]])))
    # genuine: 0.7 and 1.7 (wrong); imposters: 0.3, 0.4 (wrong), 2, 1.3 (right)
    assert float(learner.meta_gradient(episode)["accuracy"]) == pytest.approx((0 / 2 + 2 / 4) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "triplet"}, "expected 'contrastive' or 'koch'"),
        ({"average": "hard"}, "expected 'auto', 'active', 'balanced' or 'all'"),
        ({"loss": "koch", "average": "active"}, "got average='active' with loss='koch', expected 'balanced' or 'all'"),
        ({"margin": 0.0}, "got margin=0.0, expected a positive number"),
        ({"margin": 2.5}, "at most 2 with embeddings of unit length"),
        ({"margin": math.nan}, "got margin=nan"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    """The error is raised when the learner is built."""
    with pytest.raises(OptionError, match=message):
        Siamese(SPEC, **options)
    assert Siamese(SPEC, margin=2.5, unit_length=False).margin == 2.5


# --- That it learns -----------------------------------------------------------------------------------------------


def trained(loss: str, seed: int) -> float:
    """Train a learner and return its 5-way 1-shot accuracy on unseen classes."""
    t = tasks()
    learner = kshot.learner("siamese", t.spec, seed=seed, loss=loss)
    engine = Engine(learner, tasks(way=20, query=5), optimizer={"lr": 3e-3})
    engine.train(200)
    return engine.evaluate(300, tasks=t).mean


def test_the_distance_of_inputs_is_far_below() -> None:
    """The next test shows that training makes the difference."""
    t = tasks()
    raw = Siamese(t.spec, encoder=nn.Flatten(), unit_length=False)
    assert Engine(raw, t).evaluate(300).mean < 0.36


@pytest.mark.parametrize(("loss", "least"), [("contrastive", 0.896), ("koch", 0.777)])
def test_it_learns_to_tell_unseen_classes_apart(loss: str, least: float) -> None:
    """The bounds are means of 5 seeds less 3 sigma: contrastive 90.1 % (sigma 0.16), koch 85.9 % (sigma 2.7)."""
    assert trained(loss, 0) > least


def test_building_the_weights_leaves_the_learner_in_training_mode() -> None:
    """A new torch module is in training mode, and inferring the length of an embedding must not change that."""
    learner = Siamese(SPEC, loss="koch")
    assert learner.weights is not None
    assert all(m.training for m in learner.modules())


def test_the_examples_in_docstrings_run() -> None:
    """A wrong example is worse than none."""
    for module in ("kshot_siamese.siamese", "kshot_siamese.verification"):
        result = doctest.testmod(sys.modules[module])
        assert (result.failed, result.attempted > 0) == (0, True)
