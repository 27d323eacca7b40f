"""``kshot_cavia``: the paper's equations against second implementations, how nets see phi, and that it learns."""

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
from kshot.nn import Network, conv4
from kshot.randomness import episode_keys, uniform
from kshot.testing import sample_tasks, suite
from kshot_cavia import CAVIA

SPEC = TaskSpec(kind="regression", input_shape=(1,), target_shape=(1,), shot=10, query=10, split_by="index")
IMAGES = sample_tasks.classification(input_shape=(1, 16, 16))


class Waves:
    """Provide sine waves of random amplitude and phase, as in section 5.1."""

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


def smooth(context: int = 3, **options: Any) -> CAVIA:
    """Return a float64 net with Tanh, whose derivatives exist everywhere."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(1 + context, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1))
    return CAVIA(SPEC, network=net, context=context, inner_lr=0.5, **options).double()


def outputs(theta: list[Tensor], phi: Tensor, x: Tensor) -> Tensor:
    """Compute the net of ``smooth`` by hand: phi is a shift of the first layer."""
    w1, b1, w2, b2, w3, b3 = theta
    h = x @ w1[:, :1].T + (w1[:, 1:] @ phi + b1)
    return (h.tanh() @ w2.T + b2).tanh() @ w3.T + b3


def adapted(theta: list[Tensor], support: Support, b: int, steps: int, second_order: bool = True) -> Tensor:
    """Compute phi' of one task by plain autograd, from phi = 0."""
    phi = torch.zeros(theta[0].shape[1] - 1, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        loss = F.mse_loss(outputs(theta, phi, support.x[b]), support.y[b])
        phi = phi - 0.5 * torch.autograd.grad(loss, phi, create_graph=second_order)[0]
    return phi


def query_loss(theta: list[Tensor], episodes: Episode, steps: int, second_order: bool = True) -> Tensor:
    """Compute the mean loss on the queries, task by task."""
    losses = []
    for b in range(episodes.size):
        phi = adapted(theta, episodes.support, b, steps, second_order)
        losses.append(F.mse_loss(outputs(theta, phi, episodes.query.x[b]), episodes.query.y[b]))
    return torch.stack(losses).mean()


def gradient_of(learner: CAVIA, episodes: Episode) -> list[Tensor]:
    learner.zero_grad()
    learner.meta_gradient(episodes)
    return [p.grad.clone() for p in learner.parameters() if p.grad is not None]


def alike(left: Any, right: Any, atol: float = 1e-12) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(left, right, strict=True))


# --- The meta-gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("order", ["second", "first"])
def test_the_meta_gradient_is_that_of_plain_autograd(steps, strategy, order):
    """Theta has the gradient of a second implementation, to 1e-12 in float64."""
    learner = smooth(inner_steps=steps, strategy=strategy, order=order)
    assert learner.needs.exact_gradient == (order == "second")
    episodes = in_float64(Waves().sample("train", range(4)))
    gradient = gradient_of(learner, episodes)
    theta = list(learner.parameters())
    expected = torch.autograd.grad(query_loss(theta, episodes, steps, order == "second"), theta)
    assert alike(gradient, expected)
    assert min(float(g.abs().max()) for g in expected) > 1e-4


def test_finite_differences_agree_because_the_gradient_goes_through_phi():
    """Moving theta moves phi' too: the second-order gradient has both effects, and the first-order one has not."""
    episodes = in_float64(Waves().sample("train", range(3)))
    learner = smooth(inner_steps=3)
    slope = torch.cat([g.flatten() for g in gradient_of(learner, episodes)])
    first = torch.cat([g.flatten() for g in gradient_of(smooth(inner_steps=3, order="first"), episodes)])
    assert float((first - slope).norm()) > 0.02 * float(slope.norm())
    theta = list(learner.parameters())
    start = nn.utils.parameters_to_vector(theta).detach().clone()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        d = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(start + sign * 1e-6 * d, theta)
            values.append(float(query_loss(theta, episodes, 3).detach()))
        assert float(slope @ d) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)


def test_losses_taken_apart_have_the_gradient_of_their_mean():
    """The mean of the losses has the meta-gradient, and the displacement is -phi' (ability ``PerTask``)."""
    learner = smooth(inner_steps=2)
    episodes = in_float64(Waves().sample("train", range(3)))
    gradient = gradient_of(learner, episodes)
    learner.zero_grad()
    losses, away = learner.task_losses(episodes)
    losses.mean().backward()
    assert alike(gradient, [p.grad for p in learner.parameters()])
    theta = list(learner.parameters())
    assert alike(away["phi"], [-adapted(theta, episodes.support, b, 2) for b in range(3)])


# --- phi belongs to a task, and theta to all ------------------------------------------------------


def test_adapting_changes_phi_only():
    """Theta is bit for bit what it was, and the predictions are those of theta with the task's own phi'."""
    learner = smooth(test_steps=2).eval()
    before = copy.deepcopy(learner.state_dict())
    episodes = in_float64(Waves().sample("test", range(3)))
    values = learner.adapt(episodes.support)(episodes.query.x)
    theta = list(learner.parameters())
    for b in range(3):
        phi = adapted(theta, episodes.support, b, 2)
        assert torch.allclose(values[b], outputs(theta, phi, episodes.query.x[b]), rtol=0, atol=1e-12)
    assert not values.requires_grad
    after = learner.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("phi" in name for name in after)
    assert learner.net.net.phi.tolist() == [0.0] * 3


def test_every_task_starts_from_zero_whatever_the_other_tasks_are():
    """A task has the same phi' and the same predictions alone, among others, and after others."""
    learner = smooth(inner_steps=2).eval()
    alone, three = (in_float64(Waves().sample("test", numbers)) for numbers in ([5], [7, 5, 6]))
    values = [learner.adapt(e.support)(alone.query.x.expand(e.size, -1, -1)) for e in (three, alone)]
    assert torch.allclose(values[0][1], values[1][0], rtol=0, atol=1e-12)
    contexts = [learner.trace(e)["context"] for e in (three, alone)]
    assert torch.allclose(contexts[0][1], contexts[1][0], rtol=0, atol=1e-12)
    assert contexts[0][:, 0].eq(0).all()
    assert not torch.allclose(contexts[0][0, 2], contexts[0][1, 2], atol=1e-3)


def test_training_leaves_phi_at_zero_and_moves_running_statistics():
    """The next task starts from 0 too; batch norm keeps the mean statistics of the tasks."""
    learner = kshot.learner("cavia", IMAGES.spec, width=4, normalisation="inductive", context=5)
    means = learner.net.net.net[0][1].running_mean
    before = means.clone()
    Engine(learner, IMAGES, meta_batch=3).train(2)
    assert learner.net.net.phi.tolist() == [0.0] * 5
    assert not torch.equal(before, means)


def test_a_trace_shows_phi_and_the_predictions_of_every_step():
    """Each traced prediction is that of a learner with as many test steps (ability ``Explains``)."""
    episodes = in_float64(Waves().sample("test", range(2)))
    traced = smooth(test_steps=3).trace(episodes)
    assert traced["outputs"].shape == (2, 4, 10, 1)
    assert traced["context"].shape == (2, 4, 3)
    for k in range(4):
        learner = smooth(test_steps=k).eval()
        predict = learner.adapt(episodes.support)
        assert torch.allclose(traced["outputs"][:, k], predict(episodes.query.x), atol=1e-12)
        expected = adapted(list(learner.parameters()), episodes.support, 1, k)
        assert torch.allclose(traced["context"][1, k], expected, atol=1e-12)


@pytest.mark.parametrize("steps", [0, 2])
def test_without_context_parameters_it_is_a_net_trained_on_all_tasks_together(steps):
    """The gradient is that of the mean loss on all queries, and adapting does nothing."""
    learner = smooth(context=0, inner_steps=steps)
    episodes = in_float64(Waves().sample("train", range(4)))
    gradient = gradient_of(learner, episodes)
    net = learner.net.net.net
    loss = F.mse_loss(net(episodes.query.x), episodes.query.y)
    assert alike(gradient, torch.autograd.grad(loss, list(net.parameters())))
    values = learner.eval().adapt(episodes.support)(episodes.query.x)
    assert torch.allclose(values, net(episodes.query.x), rtol=0, atol=1e-12)
    plain = kshot.learner("cavia", IMAGES.spec, width=4, context=0)
    assert plain.net.net.film is None
    plain.meta_gradient(IMAGES.sample("train", range(2)))


# --- How a net sees phi ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv4", "strided-conv4"])
def test_film_scales_and_shifts_the_third_block_before_its_relu(name):
    """The outputs are those of the network by hand, with scale and shift from one linear map of phi."""
    torch.manual_seed(0)
    learner = CAVIA(IMAGES.spec, network=name, width=6, context=4).eval()
    conditioned = learner.net.net
    blocks, head, film = list(conditioned.net[:4]), conditioned.net[-1], conditioned.film
    x = torch.rand(5, 1, 16, 16)
    phi = torch.randn(4)
    scale, shift = (film.weight @ phi + film.bias).view(2, 1, 6, 1, 1)
    h = blocks[1](blocks[0](x))
    h = blocks[2][:-1](h)
    expected = head(blocks[3](F.relu(scale * h + shift)).flatten(1))  # 16 x 16 pixels become one place
    conditioned.phi.copy_(phi)
    assert torch.allclose(conditioned(x), expected, atol=1e-6)
    assert not torch.allclose(conditioned(x), conditioned.net(x), atol=1e-2)


class Residual(nn.Module):
    """A convolutional net of a user's, which is no nn.Sequential."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, stride=2)
        self.middle = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, way)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head((h + self.middle(h.relu())).mean((2, 3)))


def test_film_acts_after_any_layer_of_a_module_of_the_user():
    """The module stays as it is: it has no hook afterwards, and computes the same without the learner."""
    torch.manual_seed(0)
    net = Residual(3)
    learner = CAVIA(IMAGES.spec, network=net, film_after="middle", context=4, inner_lr=10.0)
    assert learner.net.net.film.out_features == 12
    x = torch.rand(5, 1, 16, 16)
    plain, scale = net(x), learner.net.net.film.bias.view(2, 1, 6, 1, 1)
    h = net.stem(x)
    expected = net.head((h + scale[0] * net.middle(h.relu()) + scale[1]).mean((2, 3)))
    assert torch.allclose(learner.net.net(x), expected, atol=1e-6)
    assert len(gradient_of(learner, IMAGES.sample("train", range(3)))) == len(list(learner.parameters()))
    assert not net.middle._forward_hooks
    assert torch.equal(net(x), plain)


class Scaled(nn.Module):
    """A net of a user's that takes phi itself: y = a x + b with a and b from phi."""

    def __init__(self) -> None:
        super().__init__()
        self.from_phi = nn.Linear(2, 3)

    def forward(self, x: Tensor, phi: Tensor) -> Tensor:
        w = self.from_phi(phi)
        return x @ w[:2, None] + w[2]


def test_a_module_that_takes_phi_is_called_with_it():
    """One step of 0.5 on phi is computed by hand from the loss."""
    torch.manual_seed(0)
    lines = sample_tasks.Lines()
    net = Scaled()
    learner = CAVIA(lines.spec, network=net, context=2, inner_lr=0.5)
    assert learner.net.net.conditioning == "argument"
    episode = lines.sample("test", [0])
    phi = torch.zeros(2, requires_grad=True)
    slope = torch.autograd.grad(F.mse_loss(net(episode.support.x[0], phi), episode.support.y[0]), phi)[0]
    values = learner.eval().adapt(episode.support)(episode.query.x)
    assert torch.allclose(values[0], net(episode.query.x[0], -0.5 * slope), atol=1e-6)


taking_phi = suite(learner=lambda spec: CAVIA(spec, network=Scaled(), context=2), tasks=sample_tasks.Lines())
film_after = suite(
    learner=lambda spec: CAVIA(spec, network=Residual(3), film_after="middle", context=4, inner_lr=10.0), tasks=IMAGES
)


def test_phi_follows_the_flattened_numbers_of_an_input():
    """A small image is flattened for mlp and for a module of the user's, which takes D + context numbers."""
    small = sample_tasks.classification(input_shape=(1, 5, 4))
    assert kshot.learner("cavia", small.spec, context=7).net.net.net[1].in_features == 20 + 7
    net = nn.Linear(20 + 7, 3)
    learner = CAVIA(small.spec, network=net, context=7)
    x = torch.rand(2, 1, 5, 4)
    learner.net.net.phi.copy_(torch.arange(7.0))
    expected = x.flatten(1) @ net.weight[:, :20].T + (net.weight[:, 20:] @ torch.arange(7.0) + net.bias)
    assert torch.allclose(learner.net.net(x), expected, atol=1e-6)


def test_a_network_keeps_its_policy_of_normalisation():
    """A kshot ``Network`` of the user's is unpacked, and phi is put into its net."""
    net = Network(nn.Sequential(conv4((1, 16, 16), 4), nn.Linear(4, 3)), "support", (1, 16, 16))
    learner = CAVIA(IMAGES.spec, network=net, film_after="0.2")
    assert learner.net.normalisation == "support"
    assert learner.needs.queries == "independent"
    assert not learner.needs.exact_gradient


# --- Options --------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_paper_and_the_authors_code():
    """Sine waves: 5 context parameters, one step of 1.0, 25 tasks. Images: 100 of them, FiLM, two steps, 16 tasks."""
    sine, image = CAVIA(SPEC), CAVIA(IMAGES.spec, width=4)
    assert (len(sine.net.net.phi), sine.inner_lr, sine.inner_steps, sine.test_steps) == (5, 1.0, 1, 1)
    assert [tuple(p.shape) for p in sine.parameters()] == [(40, 6), (40,), (40, 40), (40,), (1, 40), (1,)]
    assert (len(image.net.net.phi), image.inner_lr, image.inner_steps, image.test_steps) == (100, 1.0, 2, 2)
    assert image.net.net.conditioning == "film"
    assert (sine.training_defaults.meta_batch, image.training_defaults.meta_batch) == (25, 16)
    assert type(kshot.learner("caml", SPEC)) is CAVIA
    assert CAVIA(SPEC, inner_steps=3).test_steps == 3


def test_bad_input_is_refused_before_any_compute():
    """The message gives what was given, what was expected and what to do."""
    varying = TaskSpec(kind="classification", input_shape=(4,), way=(2, 5), shot=1, query=1, block=4)
    with pytest.raises(DataError, match="expected one number: the last layer has an output for each class"):
        CAVIA(varying)
    for wrong in ({"context": -1}, {"inner_steps": -1}, {"test_steps": -1}):
        with pytest.raises(OptionError, match=r"CAVIA: \w+: got -1 \(int\), expected int (from|at least) 0"):
            CAVIA(SPEC, **wrong)
    with pytest.raises(DataError, match=r"cavia: got a net .* \(1, 1\) with 5 context parameters .*\(D \+ context"):
        CAVIA(SPEC, network=nn.Linear(1, 1))
    with pytest.raises(DataError, match=r"called as net\(x, phi\), with phi of shape \[context\]"):
        CAVIA(SPEC, network=Scaled())
    with pytest.raises(OptionError, match=r"film_after='stem.0', expected a layer of the net: stem, middle, head"):
        CAVIA(IMAGES.spec, network=Residual(3), film_after="stem.0")
    with pytest.raises(OptionError, match=r"conditioning='film' without film_after"):
        CAVIA(IMAGES.spec, network=Residual(3), conditioning="film")
    with pytest.raises(OptionError, match=r"film_after='stem' and conditioning='input'"):
        CAVIA(IMAGES.spec, network=Residual(3), film_after="stem", conditioning="input")
    with pytest.raises(OptionError, match=r"conditioning='argument' and network='mlp', expected film for conv4"):
        CAVIA(SPEC, conditioning="argument")
    with pytest.raises(OptionError, match=r"conditioning='input' and network='conv4', expected film for conv4"):
        CAVIA(IMAGES.spec, conditioning="input")
    with pytest.raises(DataError, match=r"film_after='0', a layer that returns no tensor \[n, C, ...\] once"):
        CAVIA(SPEC, network=nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 1))), film_after="0")
    layer = nn.Linear(1, 1)
    twice, never = nn.Sequential(layer, layer), nn.Sequential(nn.Linear(1, 1))
    never[0].unused = nn.Linear(1, 1)
    for net, path in ((twice, "0"), (never, "0.unused")):
        with pytest.raises(DataError, match=r"returns no tensor \[n, C, ...\] once in each call of the net"):
            CAVIA(SPEC, network=net, film_after=path)


def test_a_diverging_inner_loop_names_task_and_step():
    """A NaN is reported in the inner loop where it arises, not as a NaN loss of the meta-batch."""
    learner = CAVIA(SPEC, inner_lr=1e30, inner_steps=3)
    with pytest.raises(TrainingError, match=r"cavia: got inner loss .* of episode 0 of split 'train' .* step \d of 3"):
        learner.meta_gradient(Waves().sample("train", range(2)))


def test_it_learns_to_fit_sine_waves_from_ten_points():
    """The error is at most mean + 3 sigma of 5 seeds (1.53, sigma .14); without adaptation 3.0 is the best."""
    engine = Engine(kshot.learner("cavia", SPEC, seed=0), Waves())
    engine.train(300)
    assert engine.evaluate(200).mean < 1.95


def test_without_context_parameters_it_can_not_tell_the_waves_apart():
    """The best that one function can do for all waves is 3.0; two seeds had 3.03 and 3.00."""
    engine = Engine(kshot.learner("cavia", SPEC, seed=0, context=0), Waves())
    engine.train(300)
    assert engine.evaluate(200).mean == pytest.approx(3.0, abs=0.15)


@pytest.mark.slow
def test_it_learns_characters():
    """A small conv4 learns 5-way 1-shot (chance 20 %) inside kshot-omniglot; two seeds had 39 and 38 %."""
    pytest.importorskip("kshot_omniglot")
    tasks = kshot.tasks("omniglot", way=5, shot=1, query=5)
    engine = Engine(kshot.learner("cavia", tasks.spec, width=16, seed=0), tasks, meta_batch=4)
    engine.train(200)
    assert engine.evaluate(100).mean > 0.28


def test_training_takes_the_inner_steps_whatever_the_test_steps_are():
    """``test_steps`` is for evaluation and use."""
    batch = in_float64(Waves().sample("train", range(3)))
    few, many = (gradient_of(smooth(inner_steps=2, test_steps=k), batch) for k in (2, 5))
    assert alike(few, many, atol=0)
