"""``kshot_meta_lstm``: the paper's equations against second implementations, gradient descent as a limit, learning."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Engine, Episode, TaskSpec
from kshot.episode import map_tensors
from kshot.errors import DataError, OptionError, TrainingError
from kshot.testing import sample_tasks
from kshot_meta_lstm import Gates, MetaLSTM

TASKS = sample_tasks.classification(way=3, shot=2, query=4)


def in_float64(episode: Episode) -> Episode:
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def episodes(count: int = 3, split: str = "train") -> Episode:
    return in_float64(TASKS.sample(split, range(count)))


def smooth(**options: Any) -> MetaLSTM:
    """Return a learner in float64 with large steps, whose net has derivatives everywhere and weights that matter."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    options = {"lstm": 4, "inner_steps": 3, "input_bias": (-1.0, 0.0), "forget_bias": (2.0, 3.0), **options}
    learner = MetaLSTM(TASKS.spec, network=net, **options).double()
    with torch.no_grad():
        for name, parameter in learner.gates.named_parameters():
            if "bias" not in name:
                parameter.mul_(50)  # so that every input of the gates matters
    return learner


def open_gates(learner: MetaLSTM, rate: float) -> MetaLSTM:
    """Set f = 1 and i = rate for all inputs; in float64 the sigmoid of 40 is 1."""
    with torch.no_grad():
        for parameter in learner.gates.parameters():
            parameter.zero_()
        learner.gates.forget_gate.bias.fill_(40.0)
        learner.gates.input_gate.bias.fill_(math.log(rate / (1 - rate)))
    return learner


def gradients_of(learner: MetaLSTM, batch: Episode) -> list[Tensor]:
    learner.zero_grad()
    learner.meta_gradient(batch)
    return [p.grad.clone() for p in learner.parameters() if p.grad is not None]


def adapted_by_sgd(learner: MetaLSTM, batch: Episode, b: int, rate: float, steps: int) -> nn.Module:
    module = copy.deepcopy(learner.net.net)
    sgd = torch.optim.SGD(module.parameters(), lr=rate)
    for _ in range(steps):
        sgd.zero_grad()
        F.cross_entropy(module(batch.support.x[b]), batch.support.y[b]).backward()
        sgd.step()
    return module


# --- Gradient descent as a limit ------------------------------------------------------------------


@pytest.mark.parametrize("units", [0, 4])
def test_with_open_forget_gates_and_constant_input_gates_it_is_gradient_descent(units):
    """The adapted predictions are those of torch.optim.SGD, to 1e-12 in float64, for every number of steps."""
    batch = episodes(2, "test")
    for steps in (1, 2, 7):
        learner = open_gates(smooth(lstm=units, test_steps=steps), 0.3)
        predicted = learner.adapt(batch.support)(batch.query.x)
        for b in range(2):
            module = adapted_by_sgd(learner, batch, b, 0.3, steps)
            assert torch.allclose(predicted[b], module(batch.query.x[b]), rtol=0, atol=1e-12)


def test_its_meta_gradient_is_then_that_of_first_order_maml():
    """With f = 1 and i = rate, c_0 gets the gradient of the query loss at theta_T."""
    batch = episodes()
    learner = open_gates(smooth(), 0.3)
    gradients_of(learner, batch)
    expected = [torch.zeros_like(p) for p in learner.net.net.parameters()]
    for b in range(3):
        module = adapted_by_sgd(learner, batch, b, 0.3, 3)
        loss = F.cross_entropy(module(batch.query.x[b]), batch.query.y[b])
        slopes = torch.autograd.grad(loss, list(module.parameters()))
        expected = [e + s / 3 for e, s in zip(expected, slopes, strict=True)]
    for p, e in zip(learner.net.net.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, e, rtol=0, atol=1e-12)


def test_the_test_rate_replaces_the_gates_by_gradient_descent_at_evaluation():
    """It starts from the same c_0, takes as many steps, and changes nothing in training."""
    batch = episodes(2, "test")
    learner = smooth(test_rate=0.2, test_steps=4)
    predicted = learner.adapt(batch.support)(batch.query.x)
    for b in range(2):
        module = adapted_by_sgd(learner, batch, b, 0.2, 4)
        assert torch.allclose(predicted[b], module(batch.query.x[b]), rtol=0, atol=1e-12)
    plain, other = (gradients_of(smooth(**options), episodes()) for options in ({}, {"test_rate": 0.2}))
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


# --- A second implementation ----------------------------------------------------------------------


def naive_loss(learner: MetaLSTM, batch: Episode, steps: int, second_order: bool) -> Tensor:
    """Compute the mean query loss task by task and parameter by parameter, by the equations of section 3."""
    gates, names = learner.gates, [n for n, _ in learner.net.net.named_parameters()]
    start = dict(learner.net.net.named_parameters())
    total = torch.zeros((), dtype=torch.float64)

    def represent(x: Tensor) -> list[Tensor]:
        if float(x.detach().abs()) >= math.exp(-10):
            return [x.abs().log() / 10, x.sign()]
        return [-torch.ones_like(x), math.exp(10) * x]

    for b in range(batch.size):
        theta, memory = start, {}
        for _ in range(steps):
            outputs = torch.func.functional_call(learner.net.net, theta, (batch.support.x[b],))
            loss = F.cross_entropy(outputs, batch.support.y[b])
            slopes = torch.autograd.grad(loss, [theta[n] for n in names], create_graph=second_order, retain_graph=True)
            seen_loss = loss if second_order else loss.detach()
            new = {}
            for name, slope in zip(names, slopes, strict=True):
                cells = []
                for k, (c, g) in enumerate(zip(theta[name].flatten(), slope.flatten(), strict=True)):
                    zero = torch.zeros(gates.units, dtype=torch.float64)
                    h, cell, i, f = memory.get((name, k), (zero, zero, zero.new_zeros(()), zero.new_zeros(())))
                    signal = torch.stack([*represent(g), *represent(seen_loss)])
                    if gates.lstm is not None:
                        weights, inputs = gates.lstm.weight, torch.cat([signal, h])
                        ii, ff, gg, oo = (weights @ inputs + gates.lstm.bias).split(gates.units)
                        cell = ff.sigmoid() * cell + ii.sigmoid() * gg.tanh()
                        signal = h = oo.sigmoid() * cell.tanh()
                    i = gates.input_gate(torch.cat([signal, torch.stack([c, i])])).sigmoid()[0]
                    f = gates.forget_gate(torch.cat([signal, torch.stack([c, f])])).sigmoid()[0]
                    memory[name, k] = (h, cell, i, f)
                    cells.append(f * c + i * -g)
                new[name] = torch.stack(cells).view_as(theta[name])
            theta = new
        outputs = torch.func.functional_call(learner.net.net, theta, (batch.query.x[b],))
        total = total + F.cross_entropy(outputs, batch.query.y[b]) / batch.size
    return total


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize(("strategy", "units"), [("vmap", 4), ("loop", 4), ("loop", 0), ("traced", 4)])
def test_the_meta_gradient_is_that_of_a_naive_implementation(steps, order, strategy, units):
    """c_0 and the weights of the LSTM have the gradient of a loop over parameters, to 1e-10 in float64."""
    batch = episodes(2)
    learner = smooth(inner_steps=steps, order=order, strategy=strategy, lstm=units)
    assert learner.needs.exact_gradient == (order == "second")
    mine = gradients_of(learner, batch)
    if strategy == "traced":
        mine = gradients_of(learner, batch)  # the second run replays the trace
    loss = naive_loss(learner, batch, steps, order == "second")
    expected = torch.autograd.grad(loss, [p for p in learner.parameters() if p.grad is not None], allow_unused=True)
    assert len(mine) == len(list(learner.parameters()))
    for a, b in zip(mine, expected, strict=True):
        assert torch.allclose(a, torch.zeros_like(a) if b is None else b, rtol=0, atol=1e-10)
    assert float(learner.meta_gradient(batch)["loss"]) == pytest.approx(float(loss.detach()), rel=1e-12)


def test_first_and_second_order_differ():
    """The paper's assumption changes the gradient, so ``order`` is not without effect."""
    first, second = (gradients_of(smooth(order=order), episodes()) for order in ("first", "second"))
    assert max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) > 1e-4


def test_permuted_parameters_take_permuted_steps():
    """All parameters share the weights of the gates, so a step does not depend on their order."""
    gates, order = Gates(hidden=4).double(), torch.tensor([3, 0, 4, 1, 2])
    generator = torch.Generator().manual_seed(0)
    theta, slope = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    loss = torch.tensor(0.7, dtype=torch.float64)
    memories: list[Any] = [None, None]
    plain, other = theta, theta[order]
    for _ in range(3):
        plain, memories[0] = gates(plain, slope * plain, loss, memories[0])
        other, memories[1] = gates(other, slope[order] * other, loss, memories[1])
    assert torch.allclose(plain[order], other, rtol=0, atol=1e-14)


# --- Options and use ------------------------------------------------------------------------------


def test_the_initial_values_are_the_papers():
    """Forget biases in (4, 5), input biases in (-5, -4), small weights, 32 channels, and 12 steps for one shot."""
    images = {"kind": "classification", "input_shape": (1, 28, 28), "way": 5, "query": 5}
    seen = []
    for seed in range(20):
        learner: Any = kshot.learner("meta-lstm", TaskSpec(shot=1, **images), seed=seed)
        seen.append(tuple(float(g.bias.detach()) for g in (learner.gates.forget_gate, learner.gates.input_gate)))
        for name, p in learner.gates.named_parameters():
            assert name in ("forget_gate.bias", "input_gate.bias") or float(p.detach().abs().max()) <= 0.01
    assert all(4 <= f <= 5 and -5 <= i <= -4 for f, i in seen)
    assert len(set(seen)) == 20
    assert next(iter(learner.net.net.parameters())).shape[0] == 32
    assert (learner.inner_steps, learner.test_steps) == (12, 12)
    assert MetaLSTM(TaskSpec(shot=5, **images), width=4).inner_steps == 8


def test_the_gate_scale_changes_no_gate_but_multiplies_their_gradients():
    """Initial weights are divided by the scale, so a step of Adam, which has one size, changes a gate by more."""
    plain, scaled = (gradients_of(smooth(gate_scale=scale), episodes()) for scale in (1.0, 8.0))
    names = [name for name, _ in smooth().named_parameters()]
    for name, before, after in zip(names, plain, scaled, strict=True):
        factor = 8 if name.startswith(("gates.input_gate", "gates.forget_gate")) else 1
        assert before.abs().max() > 0
        assert torch.allclose(after, factor * before, rtol=0, atol=1e-12), name


def test_training_takes_the_inner_steps_whatever_the_test_steps_are():
    """``test_steps`` is for evaluation and use."""
    few, many = (gradients_of(smooth(test_steps=k), episodes()) for k in (1, 5))
    assert all(torch.equal(a, b) for a, b in zip(few, many, strict=True))
    batch = episodes(2, "test")
    one, five = (smooth(test_steps=k).adapt(batch.support)(batch.query.x) for k in (1, 5))
    assert not torch.allclose(one, five, atol=1e-3)
    assert not one.requires_grad


def test_losses_taken_apart_have_the_gradient_of_their_mean():
    """The mean of the losses has the meta-gradient, and the displacement is c_0 - theta_T (ability ``PerTask``)."""
    learner, batch = open_gates(smooth(), 0.3), episodes()
    whole = gradients_of(learner, batch)
    learner.zero_grad()
    losses, away = learner.task_losses(batch)
    losses.mean().backward()
    assert all(torch.allclose(a, p.grad, atol=1e-12) for a, p in zip(whole, learner.parameters(), strict=True))
    module = adapted_by_sgd(learner, batch, 1, 0.3, 3)
    for name, p in module.named_parameters():
        assert torch.allclose(away[name][1], dict(learner.net.net.named_parameters())[name] - p, atol=1e-12)


def test_bad_input_is_refused_before_any_compute():
    """The message gives what was given, what was expected and what to do."""
    varying = TaskSpec(kind="classification", input_shape=(4,), way=(2, 5), shot=1, query=1, block=4)
    with pytest.raises(DataError, match="expected one number: the last layer has an output for each class"):
        MetaLSTM(varying)
    for wrong in ((5.0, 4.0), (0.0, float("inf")), (float("nan"), 0.1)):
        with pytest.raises(OptionError, match=r"meta-lstm: got forget_bias .* expected two finite numbers"):
            MetaLSTM(TASKS.spec, forget_bias=wrong)
        with pytest.raises(OptionError, match=r"meta-lstm: got input_bias .* expected two finite numbers"):
            MetaLSTM(TASKS.spec, input_bias=wrong)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OptionError, match=r"meta-lstm: got gate_scale .* expected a positive number"):
            MetaLSTM(TASKS.spec, gate_scale=scale)
    for option in ({"inner_steps": -1}, {"lstm": -1}, {"preprocessing": 0.0}, {"order": "third"}, {"test_rate": -0.1}):
        with pytest.raises(OptionError, match=next(iter(option))):
            kshot.learner("meta-lstm", TASKS.spec, **option)


def test_a_loss_that_is_not_finite_names_task_and_step():
    """A NaN is reported in the inner loop where it arises."""
    learner, batch = smooth(), episodes(2)
    with torch.no_grad():
        learner.net.net[0].weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"meta-lstm: got inner loss nan of episode 0 .* before step 1 of 3"):
        learner.meta_gradient(batch)


def test_it_learns_to_learn():
    """Accuracy and its gain by a short training are at least mean - 3 sigma of 5 seeds (84.5 and 23.8 %, 5.2 and 4.5).

    Chance is 20 %.
    """
    tasks = sample_tasks.classification(way=5, shot=1, query=5)
    learner = kshot.learner("meta-lstm", tasks.spec, seed=0, hidden=(20,), lstm=8, inner_steps=4, input_bias=(-2, -1))
    engine = Engine(learner, tasks, meta_batch=4)
    before = engine.evaluate(60).mean
    engine.train(150)
    learned = engine.evaluate(60).mean
    assert learned > 0.69
    assert learned - before > 0.10
