"""``kshot_maml``: the paper's equations against second implementations, a published library, and that it learns."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Engine, Episode, Examples, Origin, Support, TaskSpec
from kshot.episode import map_tensors
from kshot.errors import DataError, MisfitError, OptionError, TrainingError
from kshot.nn import Network
from kshot.randomness import episode_keys, uniform
from kshot.testing import sample_tasks
from kshot_maml import MAML

SPEC = TaskSpec(kind="regression", input_shape=(1,), target_shape=(1,), shot=10, query=10, split_by="index")


class Waves:
    """Provide sine waves of random amplitude and phase, as in section 5.1."""

    spec, seed = SPEC, 0

    def sample(self, split, indices) -> Episode:
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


def smooth(**options) -> MAML:
    """Return a float64 net with Tanh, whose derivatives exist everywhere."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1))
    return MAML(SPEC, network=net, inner_lr=0.05, **options).double()


def gradient_of(learner: MAML, episodes: Episode) -> Tensor:
    learner.zero_grad()
    learner.meta_gradient(episodes)
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def flat_loss(learner: MAML, episodes: Episode, steps: int) -> float:
    """Compute the mean query loss after adapting copies of the module by torch.optim.SGD, task by task."""
    total = 0.0
    for b in range(episodes.size):
        module = copy.deepcopy(learner.net.net)
        sgd = torch.optim.SGD(module.parameters(), lr=learner.inner_lr)
        for _ in range(steps):
            sgd.zero_grad()
            F.mse_loss(module(episodes.support.x[b]), episodes.support.y[b]).backward()
            sgd.step()
        total += float(F.mse_loss(module(episodes.query.x[b]), episodes.query.y[b]).detach()) / episodes.size
    return total


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_the_meta_gradient_is_that_of_higher(steps, strategy):
    """The library of Grefenstette et al. (2019) gives the same meta-gradient to 1e-9 in float64."""
    higher = pytest.importorskip("higher")
    learner = smooth(inner_steps=steps, strategy=strategy)
    episodes = in_float64(Waves().sample("train", range(4)))
    mine = gradient_of(learner, episodes)
    learner.zero_grad()
    sgd = torch.optim.SGD(learner.net.net.parameters(), lr=learner.inner_lr)
    for b in range(4):
        with higher.innerloop_ctx(learner.net.net, sgd, copy_initial_weights=False) as (net, inner):
            for _ in range(steps):
                inner.step(F.mse_loss(net(episodes.support.x[b]), episodes.support.y[b]))
            (F.mse_loss(net(episodes.query.x[b]), episodes.query.y[b]) / 4).backward()
    theirs = torch.cat([p.grad.flatten() for p in learner.parameters()])
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)


def test_finite_differences_agree_through_three_steps():
    """The exact meta-gradient agrees with finite differences of the adapted loss, computed without torch.func."""
    learner = smooth(inner_steps=3)
    episodes = in_float64(Waves().sample("train", range(3)))
    slope = gradient_of(learner, episodes)
    start = nn.utils.parameters_to_vector(learner.parameters()).detach().clone()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        d = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(start + sign * 1e-6 * d, learner.parameters())
            values.append(flat_loss(learner, episodes, 3))
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(slope @ d), rel=1e-6)
    nn.utils.vector_to_parameters(start, learner.parameters())


def test_first_order_is_the_gradient_at_the_adapted_parameters():
    """FOMAML's gradient is grad L_q at theta', applied to theta; the inner gradients are constants."""
    learner = smooth(inner_steps=2, order="first")
    assert not learner.needs.exact_gradient
    episodes = in_float64(Waves().sample("train", range(3)))
    mine = gradient_of(learner, episodes)
    expected = torch.zeros_like(mine)
    for b in range(3):
        module = copy.deepcopy(learner.net.net)
        sgd = torch.optim.SGD(module.parameters(), lr=learner.inner_lr)
        for _ in range(2):
            sgd.zero_grad()
            F.mse_loss(module(episodes.support.x[b]), episodes.support.y[b]).backward()
            sgd.step()
        sgd.zero_grad()
        F.mse_loss(module(episodes.query.x[b]), episodes.query.y[b]).backward()
        expected += torch.cat([p.grad.flatten() for p in module.parameters()]) / 3
    assert torch.allclose(mine, expected, atol=1e-12)
    assert not torch.allclose(gradient_of(smooth(inner_steps=2), episodes), expected, atol=1e-6)


def test_the_support_is_descended_and_the_query_only_judges():
    """Adapted predictions are those of SGD on the support alone, for ``test_steps`` steps."""
    learner = smooth(inner_steps=1, test_steps=4).eval()
    episodes = in_float64(Waves().sample("test", range(2)))
    values = learner.adapt(episodes.support)(episodes.query.x)
    assert float((values - episodes.query.y).square().mean()) == pytest.approx(flat_loss(learner, episodes, 4))


def test_training_takes_the_inner_steps_whatever_the_test_steps_are():
    """``test_steps`` changes neither the meta-gradient nor the reported loss."""
    episodes = in_float64(Waves().sample("train", range(3)))
    learner, other = smooth(inner_steps=2, strategy="loop"), smooth(inner_steps=2, test_steps=5, strategy="loop")
    assert torch.equal(gradient_of(learner, episodes), gradient_of(other, episodes))
    assert float(other.meta_gradient(episodes)["loss"]) == pytest.approx(flat_loss(learner, episodes, 2), rel=1e-12)


def test_training_reports_the_predictions_after_the_inner_steps():
    """Loss and accuracy of classification are those of the predictor with as many steps."""
    tasks = sample_tasks.classification(way=4, shot=2, query=3)
    learner = kshot.learner("maml", tasks.spec, seed=0, inner_steps=2, inner_lr=0.1, hidden=(8,), strategy="loop")
    e = in_float64(tasks.sample("train", range(3)))
    logits = learner.double().adapt(e.support)(e.query.x).detach()
    reported = learner.meta_gradient(e)
    assert float(reported["loss"]) == pytest.approx(float(F.cross_entropy(logits.flatten(0, 1), e.query.y.flatten())))
    share = (logits.argmax(-1) == e.query.y).float().mean()
    assert float(reported["accuracy"]) == pytest.approx(float(share))
    assert share != 0.5


def test_adapting_in_training_mode_drops_nothing():
    """Dropout is for training alone: predictions are those of evaluation mode, whatever mode the learner is in."""
    net = nn.Sequential(nn.Linear(1, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    learner = MAML(SPEC, network=net, strategy="loop").double().train()
    episodes = in_float64(Waves().sample("test", range(2)))
    predicted, traced = learner.adapt(episodes.support)(episodes.query.x), learner.trace(episodes)["outputs"]
    assert learner.net.net.training
    assert torch.equal(predicted, learner.eval().adapt(episodes.support)(episodes.query.x))
    assert torch.equal(traced[:, -1], predicted)


def test_losses_taken_apart_have_the_gradient_of_their_mean():
    """The mean of the losses has the meta-gradient, and the displacement is theta - theta' (ability ``PerTask``)."""
    learner = smooth(inner_steps=2)
    episodes = in_float64(Waves().sample("train", range(3)))
    whole = gradient_of(learner, episodes)
    learner.zero_grad()
    losses, away = learner.task_losses(episodes)
    losses.mean().backward()
    assert torch.allclose(whole, torch.cat([p.grad.flatten() for p in learner.parameters()]), atol=1e-12)
    module = copy.deepcopy(learner.net.net)
    sgd = torch.optim.SGD(module.parameters(), lr=learner.inner_lr)
    for _ in range(2):
        sgd.zero_grad()
        F.mse_loss(module(episodes.support.x[1]), episodes.support.y[1]).backward()
        sgd.step()
    for name, p in module.named_parameters():
        assert torch.allclose(away[name][1], dict(learner.net.net.named_parameters())[name] - p, atol=1e-12)


def test_a_trace_shows_the_predictions_of_every_step():
    """Each traced prediction is that of a learner with as many test steps (ability ``Explains``)."""
    episodes = in_float64(Waves().sample("test", range(2)))
    traced = smooth(test_steps=3).trace(episodes)
    assert traced["outputs"].shape == (2, 4, 10, 1)
    for k in range(4):
        predict = smooth(test_steps=k).eval().adapt(episodes.support)
        assert torch.allclose(traced["outputs"][:, k], predict(episodes.query.x), atol=1e-12)


def test_rates_and_meta_batches_are_the_papers():
    """The defaults are those of appendix A.1."""
    images = {"kind": "classification", "input_shape": (1, 28, 28), "shot": 1, "query": 5}
    assert MAML(TaskSpec(way=5, **images), width=4).inner_lr == 0.4
    assert MAML(TaskSpec(way=20, **images), width=4).inner_lr == 0.1
    assert MAML(SPEC).inner_lr == 0.01
    assert MAML(SPEC).training_defaults.meta_batch == 25
    shapes = [tuple(p.shape) for p in MAML(SPEC).parameters()]
    assert shapes == [(40, 1), (40,), (40, 40), (40,), (1, 40), (1,)]


def test_bad_input_is_refused_before_any_compute():
    """The message gives what was given, what was expected and what to do."""
    varying = TaskSpec(kind="classification", input_shape=(4,), way=(2, 5), shot=1, query=1, block=4)
    with pytest.raises(DataError, match="expected one number: the last layer has an output for each class"):
        MAML(varying)
    with pytest.raises(OptionError, match="inner_steps: got -1"):
        MAML(SPEC, inner_steps=-1)
    with pytest.raises(OptionError, match=r"'auto' \| 'conv4' \| 'strided-conv4' \| 'mlp'"):
        MAML(SPEC, network="conv5")
    with pytest.raises(MisfitError, match="sequence"):
        kshot.check(MAML(SPEC), TaskSpec(kind="sequence", input_shape=(1,), target_shape=(1,), query=3))


def test_a_diverging_inner_loop_names_task_and_step():
    """A NaN is reported in the inner loop where it arises, not as a NaN loss of the meta-batch."""
    learner = MAML(SPEC, inner_lr=1e18, inner_steps=3)
    with pytest.raises(TrainingError, match=r"maml: got inner loss .* of episode 0 of split 'train' .* step \d of 3"):
        learner.meta_gradient(Waves().sample("train", range(2)))


def test_it_learns_to_fit_sine_waves_from_ten_points():
    """Both errors are at most mean + 3 sigma of 5 seeds (1.75, 1.26, sigma .06); without adaptation 3.0 is the best."""
    engine = Engine(kshot.learner("maml", SPEC, seed=0), Waves())
    engine.train(600)
    one = engine.evaluate(200)
    five = engine.evaluate(200, learner_options={"test_steps": 5})
    assert one.mean < 1.95
    assert five.mean < 1.45


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "least"), [("transductive", 0.5), ("support", 0.5), ("inductive", 0.37)])
def test_it_learns_characters(policy, least):
    """A small conv4 learns 5-way 1-shot (chance 20 %) on the characters inside kshot-omniglot.

    It learns more slowly with running statistics; that bound is mean - 3 sigma of 5 seeds (45.9 and 2.7 %).
    """
    pytest.importorskip("kshot_omniglot")
    tasks = kshot.tasks("omniglot", way=5, shot=1, query=5)
    learner = kshot.learner("maml", tasks.spec, width=16, normalisation=policy, seed=0)
    engine = Engine(learner, tasks, meta_batch=4)
    engine.train(200)
    result = engine.evaluate(100, learner_options={"test_steps": 3})
    assert (result.normalisation, result.queries) == (policy, learner.needs.queries)
    assert result.mean > least


def test_a_network_with_its_own_policy_decides_whether_the_gradient_is_exact():
    """The option ``normalisation`` is not that of a network which is passed whole."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, SPEC.target_shape[0]))
    for policy in ("support", "transductive"):
        learner = MAML(SPEC, network=Network(net, policy, SPEC.input_shape))
        assert learner.net.normalisation == policy
        assert learner.needs.exact_gradient == (policy == "transductive")
