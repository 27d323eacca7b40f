"""``kshot_reptile``: the paper's identities in float64, against plain loops of torch.optim, and that it learns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Episode, Outer, Support
from kshot.errors import DataError, OptionError, TrainingError
from kshot.testing import sample_tasks
from kshot_reptile import Reptile
from kshot_reptile.inner import minibatches

LINES = sample_tasks.Lines(shot=7, query=4)
IMAGES = sample_tasks.classification(way=3, shot=4, query=2, input_shape=(1, 16, 16))


def doubled(episode: Episode) -> Episode:
    return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def smooth(kind: str) -> nn.Module:
    """Return a net with smooth activations; the one for images has batch norm."""
    torch.manual_seed(0)
    if kind == "regression":
        return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=3, bias=False), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 16, 3)
    )


def learner(kind: str, **options: Any) -> Reptile:
    spec = (LINES if kind == "regression" else IMAGES).spec
    options = {"inner_lr": 0.03, "inner_batch": 3, "test_batch": 3, **options}
    return Reptile(spec, network=smooth(kind), **options).double().train()


def episodes(kind: str, indices: Sequence[int] = (0, 1, 2), split: str = "train") -> Episode:
    return doubled((LINES if kind == "regression" else IMAGES).sample(split, indices))


def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(outputs, y) if y.is_floating_point() else F.cross_entropy(outputs, y)


def by_torch(net: nn.Module, support: Support, b: int, order: Tensor, optimizer: str, lr: float = 0.03) -> nn.Module:
    """Return theta~ of task b from a copy of the net that torch's own optimizer trains."""
    module = copy.deepcopy(net).train()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):  # each minibatch by its own statistics
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
    made = {"sgd": torch.optim.SGD, "adam": lambda p, lr: torch.optim.Adam(p, lr, betas=(0.0, 0.999))}[optimizer]
    inner = made(module.parameters(), lr=lr)
    for chosen in order[b]:
        inner.zero_grad()
        loss_of(module(support.x[b][chosen]), support.y[b][chosen]).backward()
        inner.step()
    return module


# --- The meta-gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["regression", "classification"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_grad_is_how_far_torch_s_own_optimizer_goes(kind, optimizer, strategy):
    """The gradient is the mean of theta - theta~ by torch.optim on copies: SGD, and Adam with beta1 = 0."""
    reptile, e = learner(kind, inner_optimizer=optimizer, inner_steps=6, strategy=strategy), episodes(kind)
    order = minibatches(e.support, 3, 6)
    copies = [by_torch(reptile.net.net, e.support, b, order, optimizer) for b in range(3)]
    assert not reptile.needs.exact_gradient
    reptile.meta_gradient(e)
    for name, p in reptile.net.net.named_parameters():
        ends = torch.stack([c.get_parameter(name) for c in copies])
        assert torch.allclose(p.grad, p - ends.mean(0), rtol=0, atol=1e-12), name
        assert p.grad.abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_one_step_of_sgd_on_the_whole_support_is_joint_training(kind):
    """By section 3, for k = 1, theta - theta~ = lr * grad E[L], the gradient of the mean loss over all tasks."""
    reptile, e = learner(kind, inner_optimizer="sgd", inner_batch=99, inner_steps=1), episodes(kind)
    reptile.meta_gradient(e)
    net = copy.deepcopy(reptile.net.net)
    joint = sum(loss_of(net(x), y) for x, y in zip(e.support.x, e.support.y, strict=True)) / 3
    for p, slope in zip(reptile.parameters(), torch.autograd.grad(joint, list(net.parameters())), strict=True):
        assert torch.allclose(p.grad, 0.03 * slope, rtol=0, atol=1e-12)


def test_several_steps_of_sgd_give_the_sum_of_the_gradients_on_the_way():
    """By section 5, g = g_1 + ... + g_k (times lr), each at the point that the earlier steps lead to."""
    reptile, e = learner("regression", inner_optimizer="sgd", inner_steps=4), episodes("regression", [5])
    reptile.meta_gradient(e)
    theta = [p.detach().clone() for p in reptile.parameters()]
    total = [torch.zeros_like(p) for p in theta]
    for chosen in minibatches(e.support, 3, 4)[0]:
        at = [p.requires_grad_() for p in theta]
        names = [n for n, _ in reptile.net.net.named_parameters()]
        outputs = torch.func.functional_call(
            reptile.net.net, dict(zip(names, at, strict=True)), (e.support.x[0][chosen],)
        )
        slopes = torch.autograd.grad(F.mse_loss(outputs, e.support.y[0][chosen]), at)
        total = [t + g for t, g in zip(total, slopes, strict=True)]
        theta = [(p - 0.03 * g).detach() for p, g in zip(at, slopes, strict=True)]
    for p, summed in zip(reptile.parameters(), total, strict=True):
        assert torch.allclose(p.grad, 0.03 * summed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("meta_batch", [1, 3])
def test_training_is_the_paper_s_algorithms(meta_batch):
    """Algorithms 1 (serial) and 2 (batched) are phi + eps * mean(phi~ - phi), with eps decreasing linearly."""
    reptile = learner("regression", inner_optimizer="adam")
    phi = copy.deepcopy(reptile.net.net)
    outer = Outer.of(reptile.training_defaults, lr=0.5)
    optimizer = outer.make(reptile.parameters())
    for iteration in range(4):
        e = episodes("regression", range(iteration * meta_batch, (iteration + 1) * meta_batch))
        optimizer.param_groups[0]["lr"] = outer.rate(iteration, 4)
        optimizer.zero_grad()
        reptile.meta_gradient(e)
        optimizer.step()
        order = minibatches(e.support, 3, 5)
        ends = [by_torch(phi, e.support, b, order, "adam") for b in range(meta_batch)]
        eps = 0.5 * (1 - iteration / 4)
        with torch.no_grad():
            for name, p in phi.named_parameters():
                p += eps * sum(end.get_parameter(name) - p for end in ends) / meta_batch
    for mine, naive in zip(reptile.net.net.parameters(), phi.parameters(), strict=True):
        assert torch.allclose(mine, naive, rtol=0, atol=1e-12)


def test_what_adam_remembers_stays_within_a_task():
    """A task gives the same result alone, in a meta-batch, and again: nothing leaks between tasks or calls."""
    reptile = learner("regression", inner_optimizer="adam")
    together, _ = reptile.displacement(episodes("regression"))
    again, _ = reptile.displacement(episodes("regression"))
    for b in range(3):
        alone, _ = reptile.displacement(episodes("regression", [b]))
        for name, d in together.items():
            assert torch.allclose(d[b], alone[name][0], rtol=0, atol=1e-13)
            assert torch.equal(d, again[name])


def test_queries_only_measure():
    """The labels of the queries do not change the meta-gradient; the loss is that of theta~ on them."""
    found = []
    for shift in (0.0, 100.0):
        reptile, e = learner("regression", inner_optimizer="sgd"), episodes("regression")
        e = attrs.evolve(e, query=attrs.evolve(e.query, y=e.query.y + shift))
        metrics = reptile.meta_gradient(e)
        found.append([p.grad.clone() for p in reptile.parameters()])
        order = minibatches(e.support, 3, 5)
        ends = [by_torch(reptile.net.net, e.support, b, order, "sgd") for b in range(3)]
        by_hand = sum(F.mse_loss(end(e.query.x[b]), e.query.y[b]) for b, end in enumerate(ends)) / 3
        assert float(metrics["loss"]) == pytest.approx(by_hand.item(), rel=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_training_reports_the_predictions_after_the_inner_steps():
    """Loss and accuracy of classification are those of the predictor with as many steps."""
    options = {"inner_optimizer": "sgd", "strategy": "loop", "normalisation": "transductive", "inner_steps": 2}
    reptile, e = learner("classification", test_steps=2, **options), episodes("classification", range(4))
    logits = reptile.adapt(e.support)(e.query.x)
    reported = learner("classification", test_steps=7, **options).meta_gradient(e)
    assert float(reported["loss"]) == pytest.approx(float(F.cross_entropy(logits.flatten(0, 1), e.query.y.flatten())))
    share = (logits.argmax(-1) == e.query.y).float().mean()
    assert float(reported["accuracy"]) == pytest.approx(float(share))
    assert share != 0.5


def test_task_losses_have_the_displacement_for_their_gradient():
    """Each loss has its own task's displacement as gradient and the query loss as value (ability ``PerTask``)."""
    reptile, e = learner("classification"), episodes("classification")
    losses, away = reptile.task_losses(e)
    for b in range(3):
        slopes = torch.autograd.grad(losses[b], list(reptile.net.net.parameters()), retain_graph=True)
        for (name, _), slope in zip(reptile.net.net.named_parameters(), slopes, strict=True):
            assert torch.equal(slope, away[name][b])
            assert not away[name].requires_grad
        alone = learner("classification")
        metrics = alone.meta_gradient(episodes("classification", [b]))
        assert losses[b].item() == pytest.approx(metrics["loss"].item(), rel=1e-12)


# --- Kept moments ---------------------------------------------------------------------------------


def serial_by_torch(phi: nn.Module, iterations: int, tests: Episode) -> tuple[nn.Module, Tensor]:
    """Train as the authors' code does, with one Adam of torch for all tasks; return the net and test predictions."""
    theta = copy.deepcopy(phi)
    inner = torch.optim.Adam(theta.parameters(), lr=0.03, betas=(0.0, 0.999))

    def go(support: Support, order: Tensor) -> None:
        for chosen in order[0]:
            inner.zero_grad()
            loss_of(theta(support.x[0][chosen]), support.y[0][chosen]).backward()
            inner.step()

    for iteration in range(iterations):
        start = copy.deepcopy(theta.state_dict())
        e = episodes("regression", [iteration])
        go(e.support, minibatches(e.support, 3, 5))
        with torch.no_grad():
            for name, p in theta.named_parameters():
                p.copy_(start[name] + 0.5 * (p - start[name]))
    trained = copy.deepcopy(theta)
    go(tests.support, minibatches(tests.support, 3, 4))
    return trained, theta(tests.query.x[0]).detach()


def test_kept_moments_are_the_authors_serial_training():
    """With a meta-batch of 1, training and evaluation are those of one Adam of torch that goes from task to task."""
    reptile = learner("regression", inner_optimizer="adam", moments="kept", test_steps=4)
    tests = episodes("regression", [7], "test")
    trained, predicted = serial_by_torch(reptile.net.net, 3, tests)
    optimizer = torch.optim.SGD(reptile.parameters(), lr=0.5)
    for iteration in range(3):
        optimizer.zero_grad()
        reptile.meta_gradient(episodes("regression", [iteration]))
        optimizer.step()
    for mine, theirs in zip(reptile.parameters(), trained.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)
    before = {name: t.clone() for name, t in reptile.state_dict().items()}
    assert int(before["moments.steps"]) == 15
    assert torch.allclose(reptile.adapt(tests.support)(tests.query.x)[0], predicted, rtol=0, atol=1e-12)
    assert all(torch.equal(before[name], t) for name, t in reptile.state_dict().items())


def test_the_first_iteration_with_kept_moments_is_that_with_reset_ones():
    """Moments begin at 0, and afterwards are the mean over the tasks of a meta-batch."""
    kept = learner("regression", inner_optimizer="adam", moments="kept")
    reset = learner("regression", inner_optimizer="adam")
    first, _ = kept.displacement(episodes("regression"))
    same, _ = reset.displacement(episodes("regression"))
    assert all(torch.allclose(first[name], same[name], rtol=0, atol=1e-12) for name in first)
    alone = []
    for b in range(3):
        one = learner("regression", inner_optimizer="adam", moments="kept")
        one.displacement(episodes("regression", [b]))
        alone.append(one.moments.v)
    assert torch.allclose(kept.moments.v, torch.stack(alone).mean(0), rtol=1e-12)
    second, _ = kept.displacement(episodes("regression"))
    assert not torch.allclose(first["0.weight"], second["0.weight"])
    assert int(kept.moments.steps) == 10


def test_a_resumed_training_goes_on_with_the_kept_moments(tmp_path):
    """Chunks give the same moments, and an interrupted training ends with the bits of an unbroken one."""
    tasks = sample_tasks.classification(way=3, shot=4, query=2)

    def engine(**options: Any) -> kshot.Engine:
        made = kshot.learner("reptile", tasks.spec, seed=1, hidden=(5,), inner_batch=3, moments="kept")
        return kshot.Engine(made, tasks, optimizer={"schedule": "constant"}, **options)

    whole, parts, resumed, chunked = engine(), engine(), engine(), engine(chunk=2)
    whole.train(6)
    parts.train(3)
    resumed.resume(parts.save(tmp_path / "three.pt"))
    resumed.train(6)
    expected = whole.learner.state_dict()
    assert expected["moments.v"].abs().max() > 0
    assert int(expected["moments.steps"]) == 6 * 5
    for name, t in resumed.learner.state_dict().items():
        assert torch.equal(t, expected[name]), name
    chunked.train(6)
    for name, t in chunked.learner.state_dict().items():
        assert torch.allclose(t, expected[name], rtol=1e-4, atol=1e-6), name


def test_moments_of_sgd_are_not_kept():
    """SGD has no moments."""
    with pytest.raises(OptionError, match="got moments='kept' with inner_optimizer='sgd', expected 'reset'"):
        Reptile(LINES.spec, moments="kept")


# --- Minibatches ----------------------------------------------------------------------------------


def support(shot: int, indices: Sequence[int]) -> Support:
    return sample_tasks.Lines(shot=shot).sample("train", indices).support


def test_minibatches_are_passes_over_the_support_cut_in_pieces():
    """As in the authors' code, every example is drawn once before any is drawn again, in another order."""
    order = minibatches(support(6, range(4)), 4, 6)
    assert order.shape == (4, 6, 4)
    passes = order.flatten(1).view(4, 4, 6)
    assert torch.equal(passes.sort(-1).values, torch.arange(6).expand(4, 4, 6))
    assert not torch.equal(passes[:, 0], passes[:, 1])


def test_minibatches_are_a_function_of_the_episode_s_own_key():
    """The minibatches of a task depend neither on the rest of the meta-batch nor on the number of steps."""
    together = minibatches(support(9, [3, 7, 8]), 4, 5)
    assert torch.equal(minibatches(support(9, [7]), 4, 5)[0], together[1])
    assert torch.equal(minibatches(support(9, [7]), 4, 50)[0, :5], together[1])
    assert not torch.equal(together[0], together[1])


def test_a_small_support_is_taken_whole():
    """One-shot five-way has five examples, and each step takes all of them."""
    assert minibatches(support(5, [0, 1]), 10, 2).tolist() == [[[0, 1, 2, 3, 4]] * 2] * 2
    assert minibatches(support(5, [0, 1]), 3, 0).shape == (2, 0, 3)


# --- Adapting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["regression", "classification"])
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_predictions_are_those_of_a_net_trained_on_the_support(kind, strategy):
    """Adaptation is ``test_steps`` steps of torch's own Adam; queries use the support's statistics by default."""
    reptile = learner(kind, inner_optimizer="adam", test_steps=9, strategy=strategy).eval()
    e = episodes(kind, split="test")
    order = minibatches(e.support, 3, 9)
    predicted = reptile.adapt(e.support)(e.query.x)
    for b in range(3):
        net = by_torch(reptile.net.net, e.support, b, order, "adam")
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.track_running_stats, m.momentum = True, 1.0
                m.running_mean, m.running_var = torch.zeros(4).double(), torch.ones(4).double()
        with torch.no_grad():
            net(e.support.x[b])
            assert torch.allclose(predicted[b], net.eval()(e.query.x[b]), rtol=0, atol=1e-10)


def test_adapting_in_training_mode_drops_nothing():
    """Dropout is for training alone: predictions are those of evaluation mode, whatever mode the learner is in."""
    net = nn.Sequential(nn.Linear(2, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    reptile = Reptile(LINES.spec, network=net, test_steps=3, strategy="loop").double().train()
    e = episodes("regression", split="test")
    predicted = reptile.adapt(e.support)(e.query.x)
    assert reptile.net.net.training
    assert torch.equal(predicted, reptile.eval().adapt(e.support)(e.query.x))


def test_no_step_is_no_adaptation():
    """With ``test_steps`` 0 the initialisation itself predicts, as a comparison."""
    reptile, e = learner("regression", test_steps=0).eval(), episodes("regression", split="test")
    with torch.no_grad():
        assert torch.allclose(reptile.adapt(e.support)(e.query.x), reptile.net.net(e.query.x), rtol=0, atol=1e-13)


def test_inductive_statistics_are_those_of_the_trained_nets():
    """Running means move a tenth of the way to the tasks' mean of the query statistics; adapting changes nothing."""
    for policy, moves in (("inductive", True), ("support", False), ("transductive", False)):
        reptile, e = learner("classification", inner_optimizer="sgd", normalisation=policy), episodes("classification")
        assert reptile.needs.queries == ("joint" if policy == "transductive" else "independent")
        order = minibatches(e.support, 3, 5)
        seen = []
        for b in range(3):
            end = by_torch(reptile.net.net, e.support, b, order, "sgd")
            with torch.no_grad():
                seen.append(end[0](e.query.x[b]).mean((0, 2, 3)))
        reptile.meta_gradient(e)
        expected = 0.1 * torch.stack(seen).mean(0) if moves else torch.zeros(4).double()
        assert torch.allclose(reptile.net.net[1].running_mean, expected, rtol=0, atol=1e-12)


# --- Defaults and errors --------------------------------------------------------------------------


def test_the_authors_settings_go_by_the_tasks():
    """The defaults are those of the authors' commands for Omniglot and mini-ImageNet, and of their demo on sines."""
    vectors = kshot.TaskSpec(kind="classification", input_shape=(2,), way=5, shot=1, query=1)
    twenty, colour = attrs.evolve(vectors, way=20), attrs.evolve(vectors, input_shape=(3, 84, 84))
    gradients = {"w": torch.tensor([4.0])}
    for spec, step, *numbers in (
        (vectors, 1e-3, 10, 5, 5, 50),
        (twenty, 5e-4, 20, 10, 10, 50),
        (colour, 1e-3, 10, 8, 15, 50),
        (LINES.spec, 0.08, 10, 5, 10, 32),
    ):
        reptile = Reptile(spec, width=2)
        after, _ = reptile.update({"w": torch.zeros(1)}, gradients, None)
        assert float(after["w"]) == pytest.approx(-step)
        assert [reptile.inner_batch, reptile.inner_steps, reptile.test_batch, reptile.test_steps] == numbers
    assert Reptile(vectors).training_defaults.tasks == {"shot": 10, "query": 1}


@pytest.mark.parametrize(("train", "test"), [(3, 2), (2, 3)])
def test_training_and_evaluation_have_their_own_minibatches(train, test):
    """``inner_batch`` is for training alone, and ``test_batch`` for evaluation."""
    found = []
    for options in ({"inner_batch": train, "test_batch": test}, {"inner_batch": train, "test_batch": train}):
        reptile, e = learner("regression", inner_optimizer="sgd", test_steps=5, **options), episodes("regression")
        away, _ = reptile.displacement(e)
        found.append((away, reptile.adapt(e.support)(e.query.x)))
    (first, predicted), (second, others) = found
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.allclose(predicted, others)


@pytest.mark.parametrize("options", [{"inner_batch": 0}, {"inner_steps": 0}, {"test_batch": 0}, {"test_steps": -1}])
def test_bad_options_are_refused(options):
    """The message gives the value and what was expected, before any compute."""
    (name,) = options
    with pytest.raises(OptionError, match=f"{name} {options[name]}.*at least 1, 1, 1 and 0"):
        Reptile(LINES.spec, **options)


def test_an_empty_support_and_a_diverging_inner_loop_are_named():
    """The message gives the learner, the place, and the remedy."""
    empty = attrs.evolve(support(5, [0]), x=torch.zeros(1, 0, 2), y=torch.zeros(1, 0, 1))
    with pytest.raises(DataError, match=r"reptile: got an empty support, expected at least one"):
        learner("regression").adapt(empty)
    wild = learner("regression", inner_optimizer="sgd", inner_lr=1e300)
    with pytest.raises(
        TrainingError, match=r"reptile: got inner loss .* of episode 40 of split 'train' .* lower inner_lr"
    ):
        wild.meta_gradient(episodes("regression", [40, 41]))
    with pytest.raises(TrainingError, match=r"reptile: got inner loss .* of task 0"):
        wild.adapt(episodes("regression", [40, 41]).support)


def test_kept_moments_of_other_parameters_are_refused():
    """A layer that is frozen after the learner was built has moments, which belong to no parameter that adapts."""
    tasks = sample_tasks.classification()
    learner = Reptile(tasks.spec, hidden=(8,), inner_optimizer="adam", moments="kept")
    learner.net.net[1].weight.requires_grad_(False)
    episode = tasks.sample("train", range(2))
    for run in (learner.meta_gradient, lambda e: learner.adapt(e.support)):
        with pytest.raises(OptionError, match="expected one for each number that adapts"):
            run(episode)


def test_inputs_of_queries_that_need_a_gradient_have_that_of_the_adapted_net():
    """A network below is trained by it: theta~ is a constant, so supports have none; ``.grad`` is as without them."""
    tasks = sample_tasks.Lines()
    learner = Reptile(tasks.spec, hidden=(8,), inner_steps=3, inner_lr=0.1)
    episodes = tasks.sample("train", range(3))
    learner.meta_gradient(episodes)
    expected = [p.grad.clone() for p in learner.parameters()]
    learner.zero_grad()
    x = [t.clone().requires_grad_() for t in (episodes.support.x, episodes.query.x)]
    lifted = Episode(attrs.evolve(episodes.support, x=x[0]), attrs.evolve(episodes.query, x=x[1]))
    learner.meta_gradient(lifted)
    assert all(torch.equal(p.grad, g) for p, g in zip(learner.parameters(), expected, strict=True))
    assert x[0].grad is None
    # Move the queries of one task: the mean loss of all three tasks under its theta~ changes by that gradient.
    away = learner.displacement(episodes)[0]
    theta = learner.net.state()
    for b in range(3):
        own = {name: (p - away[name][b]).detach() for name, p in theta.parameters.items()}
        query = episodes.query.x[b].clone().requires_grad_()
        loss = F.mse_loss(torch.func.functional_call(learner.net.net, own, (query,)), episodes.query.y[b]) / 3
        assert torch.allclose(torch.autograd.grad(loss, query)[0], x[1].grad[b], atol=1e-6)
