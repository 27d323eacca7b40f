"""``kshot_metasgd``: the paper's equations against second implementations, its step sizes, and that it learns."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Engine, Episode, Examples, Origin, Support, TaskSpec
from kshot.episode import map_tensors
from kshot.errors import DataError, OptionError, TrainingError
from kshot.randomness import episode_keys, uniform
from kshot.testing import sample_tasks
from kshot_metasgd import MetaSGD

SPEC = TaskSpec(kind="regression", input_shape=(1,), target_shape=(1,), shot=10, query=10, split_by="index")


class Waves:
    """Provide sine waves of random amplitude and phase, as in section 4.1."""

    spec, seed = SPEC, 0

    def sample(self, split: str, indices: Any) -> Episode:
        keys = episode_keys(0, split, indices)
        a, p = np.split(uniform(keys, "wave", 2) * [4.9, np.pi] + [0.1, 0], 2, 1)
        x = 10 * uniform(keys, "x", 20) - 5
        x, y = (torch.from_numpy(v).float()[..., None] for v in (x, a * np.sin(x - p)))
        key = torch.from_numpy(keys.view(np.int64))
        return Episode(
            Support(x[:, :10], y[:, :10], key=key),
            Examples(x[:, 10:], y[:, 10:]),
            origin=Origin(split, tuple(indices), 0),
        )


def in_float64(episode: Episode) -> Episode:
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def smooth(**options: Any) -> MetaSGD:
    """Return a float64 net with Tanh, whose derivatives exist everywhere."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1))
    return MetaSGD(SPEC, network=net, **options).double()


def outputs(theta: list[Tensor], x: Tensor) -> Tensor:
    """Compute the net of ``smooth`` by hand."""
    w1, b1, w2, b2, w3, b3 = theta
    return ((x @ w1.T + b1).tanh() @ w2.T + b2).tanh() @ w3.T + b3


def query_loss(
    theta: list[Tensor], alpha: list[Tensor], episodes: Episode, steps: int, second_order: bool = True
) -> Tensor:
    """Compute the mean query loss of algorithm 1 by plain autograd, task by task."""
    losses = []
    for b in range(episodes.size):
        adapted = theta
        for _ in range(steps):
            loss = F.mse_loss(outputs(adapted, episodes.support.x[b]), episodes.support.y[b])
            slopes = torch.autograd.grad(loss, adapted, create_graph=second_order)
            adapted = [p - a * g for p, a, g in zip(adapted, alpha, slopes, strict=True)]
        losses.append(F.mse_loss(outputs(adapted, episodes.query.x[b]), episodes.query.y[b]))
    return torch.stack(losses).mean()


def gradients_of(learner: MetaSGD, episodes: Episode) -> tuple[list[Tensor], list[Tensor]]:
    """Return the meta-gradients of theta and of alpha."""
    learner.zero_grad()
    learner.meta_gradient(episodes)
    theta, alpha = list(learner.net.net.parameters()), list(learner.alpha)
    assert all(p.grad is not None for p in theta + alpha)
    return [p.grad.clone() for p in theta if p.grad is not None], [a.grad.clone() for a in alpha if a.grad is not None]


def alike(left: list[Tensor], right: Any, atol: float = 1e-12) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("order", ["second", "first"])
def test_the_meta_gradient_is_that_of_plain_autograd(steps, strategy, order):
    """Theta and alpha have the gradient of a second implementation, to 1e-12 in float64."""
    learner = smooth(inner_steps=steps, strategy=strategy, order=order)
    assert learner.needs.exact_gradient == (order == "second")
    episodes = in_float64(Waves().sample("train", range(4)))
    by_theta, by_alpha = gradients_of(learner, episodes)
    theta, alpha = list(learner.net.net.parameters()), list(learner.alpha)
    loss = query_loss(theta, alpha, episodes, steps, order == "second")
    expected = torch.autograd.grad(loss, theta + alpha)
    assert alike(by_theta + by_alpha, expected)
    assert min(float(g.abs().max()) for g in expected) > 1e-4


@pytest.mark.parametrize("steps", [1, 3])
def test_a_constant_alpha_gives_the_gradient_of_maml(steps):
    """If all step sizes are one number, theta has MAML's gradient: (I - alpha H) grad L_q(theta') by plain autograd."""
    learner = smooth(inner_steps=steps, initial_alpha=(0.05, 0.05))
    episodes = in_float64(Waves().sample("train", range(4)))
    by_theta, _ = gradients_of(learner, episodes)
    theta = list(learner.net.net.parameters())
    rate = [torch.tensor(0.05).double()] * len(theta)  # 0.05 as a learner in float32 starts with it
    assert alike(by_theta, torch.autograd.grad(query_loss(theta, rate, episodes, steps), theta))


@pytest.mark.parametrize("order", ["second", "first"])
def test_it_is_the_plugin_maml_with_a_constant_alpha(order):
    """The loss, the gradient of theta and the adapted predictions are those of kshot-maml."""
    maml = pytest.importorskip("kshot_maml").MAML
    learner = smooth(inner_steps=2, order=order, initial_alpha=(0.0625, 0.0625))
    other = maml(SPEC, network=copy.deepcopy(learner.net.net), inner_steps=2, order=order, inner_lr=0.0625)
    episodes = in_float64(Waves().sample("train", range(4)))
    by_theta, _ = gradients_of(learner, episodes)
    other.meta_gradient(episodes)
    assert alike(by_theta, [p.grad for p in other.parameters()])
    x = episodes.query.x
    predictions = [each.eval().adapt(episodes.support)(x) for each in (learner, other)]
    assert torch.allclose(*predictions, rtol=0, atol=1e-12)


def test_the_gradient_of_alpha_is_minus_the_product_of_the_gradients():
    """After one step, dL_q/dalpha = -grad L_q(theta') o grad L_s(theta), the mean over the tasks."""
    learner = smooth()
    episodes = in_float64(Waves().sample("train", range(3)))
    _, by_alpha = gradients_of(learner, episodes)
    theta = list(learner.net.net.parameters())
    expected = [torch.zeros_like(p) for p in theta]
    for b in range(3):
        loss = F.mse_loss(outputs(theta, episodes.support.x[b]), episodes.support.y[b])
        inner = torch.autograd.grad(loss, theta)
        adapted = [(p - a * g).detach().requires_grad_() for p, a, g in zip(theta, learner.alpha, inner, strict=True)]
        loss = F.mse_loss(outputs(adapted, episodes.query.x[b]), episodes.query.y[b])
        outer = torch.autograd.grad(loss, adapted)
        expected = [e - o * g / 3 for e, o, g in zip(expected, outer, inner, strict=True)]
    assert alike(by_alpha, expected)


def test_one_rate_per_tensor_has_the_sum_of_the_gradients_of_its_elements():
    """A step size of a tensor is the same number for all its elements, so its gradient is the sum of theirs."""
    episodes = in_float64(Waves().sample("train", range(3)))
    options: dict[str, Any] = {"inner_steps": 2, "initial_alpha": (0.05, 0.05)}
    by_theta, by_alpha = gradients_of(smooth(rates="tensor", **options), episodes)
    of_elements = gradients_of(smooth(**options), episodes)
    assert [a.shape for a in by_alpha] == [torch.Size([])] * 6
    assert alike(by_theta, of_elements[0])
    assert alike(by_alpha, [a.sum() for a in of_elements[1]])


@pytest.mark.parametrize("rates", ["element", "tensor"])
def test_the_initial_step_sizes_are_uniform_and_come_from_the_seed(rates):
    """Each is a number of its own from (.005, .1), or from the given range, and a seed gives the same numbers again."""
    one, same, other = (
        kshot.learner("metasgd", SPEC, seed=seed, rates=rates, hidden=(100,) * 20) for seed in (3, 3, 4)
    )
    values = [torch.cat([a.detach().flatten() for a in each.alpha]) for each in (one, same, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert float(values[0].min()) >= 0.005 - 1e-9
    assert float(values[0].max()) <= 0.1 + 1e-8
    assert len(values[0].unique()) > len(values[0]) / 2
    four_deviations = 4 * 0.095 / 12**0.5 / len(values[0]) ** 0.5
    assert abs(float(values[0].mean()) - 0.0525) < four_deviations
    narrow = torch.cat([a.flatten() for a in kshot.learner("metasgd", SPEC, initial_alpha=(-0.2, -0.1)).alpha])
    assert float(narrow.detach().min()) >= -0.2 - 1e-8
    assert float(narrow.detach().max()) <= -0.1 + 1e-8


def test_step_sizes_may_become_negative():
    """The outer optimizer changes alpha like any parameter, and a negative step size climbs the loss."""
    learner = smooth(initial_alpha=(1e-5, 1e-5))
    episodes = in_float64(Waves().sample("train", range(3)))
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    gradients_of(learner, episodes)
    optimizer.step()
    assert min(float(a.detach().min()) for a in learner.alpha) < 0
    by_theta, by_alpha = gradients_of(learner, episodes)
    theta, alpha = list(learner.net.net.parameters()), list(learner.alpha)
    assert alike(by_theta + by_alpha, torch.autograd.grad(query_loss(theta, alpha, episodes, 1), theta + alpha))


def test_frozen_parameters_do_not_adapt_and_have_no_step_size():
    """A user's pretrained layer with requires_grad=False stays as it is."""
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    net[0].requires_grad_(False)
    learner = MetaSGD(SPEC, network=net)
    assert [tuple(a.shape) for a in learner.alpha] == [(1, 4), (1,)]
    learner.meta_gradient(Waves().sample("train", range(2)))
    assert net[0].weight.grad is None
    net[0].requires_grad_(True)
    with pytest.raises(OptionError, match=r"got no step size for the parameter '0.weight', expected .* build"):
        learner.meta_gradient(Waves().sample("train", range(2)))


def test_step_sizes_of_the_wrong_shape_are_refused():
    """Without the check, a step size would be broadcast over its parameter, or fail inside vmap."""
    episodes = Waves().sample("train", range(2))
    learner = MetaSGD(SPEC, hidden=(8,))
    for wrong in (torch.full((1,), 0.1), torch.tensor(0.1), torch.zeros(8, 2)):
        learner.alpha[0] = nn.Parameter(wrong)
        expected = r"step sizes of shape .* for the parameter '1.weight', expected shape \(8, 1\); set alpha\[0\]"
        with pytest.raises(OptionError, match=expected):
            learner.meta_gradient(episodes)
        with pytest.raises(OptionError, match=expected):
            learner.adapt(episodes.support)
    per_tensor = MetaSGD(SPEC, hidden=(8,), rates="tensor")
    with pytest.raises(RuntimeError, match=r"size mismatch for alpha.0.*\[8, 1\].*\[\]"):
        per_tensor.load_state_dict(MetaSGD(SPEC, hidden=(8,)).state_dict())


def test_losses_taken_apart_have_the_gradient_of_their_mean():
    """The mean of the losses has the meta-gradient, and the displacement is alpha o grad L_s (ability ``PerTask``)."""
    learner = smooth()
    episodes = in_float64(Waves().sample("train", range(3)))
    by_theta, by_alpha = gradients_of(learner, episodes)
    learner.zero_grad()
    losses, away = learner.task_losses(episodes)
    losses.mean().backward()
    assert alike(by_theta + by_alpha, [p.grad for p in [*learner.net.net.parameters(), *learner.alpha]])
    theta = list(learner.net.net.parameters())
    loss = F.mse_loss(outputs(theta, episodes.support.x[1]), episodes.support.y[1])
    slopes = torch.autograd.grad(loss, theta)
    assert alike([d[1] for d in away.values()], [a * g for a, g in zip(learner.alpha, slopes, strict=True)])


def test_adapting_takes_the_test_steps_and_keeps_no_graph():
    """Predictions are those of ``test_steps`` steps on the support, and a trace shows each of them."""
    learner = smooth(test_steps=3).eval()
    episodes = in_float64(Waves().sample("test", range(2)))
    values = learner.adapt(episodes.support)(episodes.query.x)
    loss = query_loss(list(learner.net.net.parameters()), list(learner.alpha), episodes, 3)
    assert float((values - episodes.query.y).square().mean()) == pytest.approx(float(loss.detach()))
    assert not values.requires_grad
    traced = learner.trace(episodes)
    assert traced["outputs"].shape == (2, 4, 10, 1)
    for k in range(4):
        predict = smooth(test_steps=k).eval().adapt(episodes.support)
        assert torch.allclose(traced["outputs"][:, k], predict(episodes.query.x), atol=1e-12)


def test_the_defaults_are_those_of_the_paper():
    """One step, a net of two hidden layers of 40 units, and one step size for each parameter."""
    learner = MetaSGD(SPEC)
    assert (learner.inner_steps, learner.test_steps) == (1, 1)
    shapes = [tuple(p.shape) for p in learner.net.net.parameters()]
    assert shapes == [(40, 1), (40,), (40, 40), (40,), (1, 40), (1,)]
    assert [tuple(a.shape) for a in learner.alpha] == shapes
    assert type(kshot.learner("meta-sgd", SPEC)) is MetaSGD


def test_bad_input_is_refused_before_any_compute():
    """The message gives what was given, what was expected and what to do."""
    varying = TaskSpec(kind="classification", input_shape=(4,), way=(2, 5), shot=1, query=1, block=4)
    with pytest.raises(DataError, match="expected one number: the last layer has an output for each class"):
        MetaSGD(varying)
    with pytest.raises(OptionError, match=r"MetaSGD: inner_steps: got -1"):
        MetaSGD(SPEC, inner_steps=-1)
    for wrong in ((0.1, 0.005), (0.0, float("inf")), (float("nan"), 0.1)):
        with pytest.raises(OptionError, match=r"metasgd: got initial_alpha .* expected two finite numbers"):
            MetaSGD(SPEC, initial_alpha=wrong)
    with pytest.raises(OptionError, match=r"rates: got 'layer', expected one of 'element', 'tensor'"):
        kshot.learner("metasgd", SPEC, rates="layer")
    learner = MetaSGD(SPEC, initial_alpha=(1e18, 1e18), inner_steps=3)
    with pytest.raises(TrainingError, match=r"metasgd: got inner loss .* of episode 0 of split 'train' .* of 3"):
        learner.meta_gradient(Waves().sample("train", range(2)))


def test_a_run_goes_on_with_the_step_sizes_it_has_learned():
    """Step sizes are part of what is learned: a trained copy has them, and a test with more steps uses them."""
    tasks = sample_tasks.Lines()
    learner = kshot.learner("metasgd", tasks.spec, seed=0, hidden=(8,))
    before = [a.detach().clone() for a in learner.alpha]
    engine = Engine(learner, tasks, meta_batch=3)
    engine.train(3)
    assert all(not torch.equal(a, b) for a, b in zip(before, learner.alpha, strict=True))
    one, three = (engine.evaluate(4, learner_options={"test_steps": steps}) for steps in (1, 3))
    assert one.mean != three.mean


def test_it_learns_to_fit_sine_waves_in_one_step():
    """The error is at most mean + 3 sigma of 5 seeds (0.76, sigma .11); MAML has 1.75."""
    engine = Engine(kshot.learner("metasgd", SPEC, seed=0), Waves())
    engine.train(600)
    assert engine.evaluate(200).mean < 1.10


@pytest.mark.slow
def test_it_learns_characters():
    """A small conv4 learns 5-way 1-shot (chance 20 %) inside kshot-omniglot; two seeds had 79 and 80 %."""
    pytest.importorskip("kshot_omniglot")
    tasks = kshot.tasks("omniglot", way=5, shot=1, query=5)
    engine = Engine(kshot.learner("metasgd", tasks.spec, width=16, seed=0), tasks, meta_batch=4)
    engine.train(200)
    assert engine.evaluate(100).mean > 0.6


def test_training_takes_the_inner_steps_whatever_the_test_steps_are():
    """``test_steps`` is for evaluation and use."""
    batch = in_float64(Waves().sample("train", range(3)))
    few, many = (gradients_of(smooth(inner_steps=2, test_steps=k), batch) for k in (2, 5))
    assert alike(few[0], many[0], atol=0)
    assert alike(few[1], many[1], atol=0)
