"""``kshot.inner.cost``: the measure of one task, and the choice between vmap and a loop."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import kshot
from kshot import Lift
from kshot.inner import State, cost, descend
from kshot.inner.cost import cost_of
from kshot.nn import Network, network


def task_of(net: Network):
    """Return a function of one task: its query loss after one inner step, and its final state."""

    def task(theta: State, x: Tensor, y: Tensor, xq: Tensor, yq: Tensor):
        loss = lambda state, xy: F.mse_loss(net.on_support(state, xy[0]), xy[1])  # noqa: E731
        end, _ = descend(loss, theta, (x, y), lr=0.1, steps=1)
        return {"loss": F.mse_loss(net.on_query(end, xq, x), yq)}, end

    return task


def test_small_nets_are_vmapped_and_large_ones_looped():
    """``auto`` decides by the size of one task's results, never by time, so that a run always decides alike."""
    spec = kshot.TaskSpec(kind="regression", input_shape=(3,), target_shape=(2,), shot=6, query=4)
    lift, net = Lift(), network("mlp", spec)
    x, y, xq, yq = (torch.rand(5, n, size) for n, size in ((6, 3), (6, 2), (4, 3), (4, 2)))
    lift.mean_gradient(task_of(net), net.state(), x, y, xq, yq)
    (chosen,) = lift._chosen.values()
    assert chosen.chunk > 25
    images = kshot.TaskSpec(kind="classification", input_shape=(1, 28, 28), way=2, shot=3, query=10)
    lift, net = Lift(), network("conv4", images)
    x = torch.rand(1, 20, 1, 28, 28)
    lift.mean_gradient(task_of(net), net.state(), x, torch.rand(1, 20, 2), x, torch.rand(1, 20, 2))
    assert [c.chunk for c in lift._chosen.values()] == [None]


def test_counting_a_task_leaves_the_random_numbers_as_they_were():
    """The first task runs once more to be measured; a dropout in it must not change the run."""
    before = torch.default_generator.get_state()
    measured = cost_of(lambda x: (x + 1, torch.rand(3)), torch.zeros(4))
    assert torch.equal(before, torch.default_generator.get_state())
    assert measured.bytes == 4 * 4 + 3 * 4
    assert (measured.device, measured.apart) == ("cpu", False)


def test_counting_restores_every_generator(monkeypatch):
    """Those of Python, of NumPy and of the device of the inputs, which another generator stands for here."""
    other = torch.Generator()
    monkeypatch.setattr(cost, "global_generators", lambda device: [torch.default_generator, other])
    draw = [random.random, np.random.rand, lambda: float(torch.rand((), generator=other))]
    numbers = []
    for counted in (True, False):
        random.seed(0)
        np.random.seed(0)
        other.manual_seed(0)
        if counted:
            cost_of(lambda x: (x, [each() for each in draw]), torch.zeros(4))
        numbers.append([each() for each in draw])
    assert numbers[0] == numbers[1]
