"""``kshot.inner.descent``: closed forms of the inner loop in float64, and its error messages."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Lift
from kshot.errors import TrainingError
from kshot.inner import State, adam, check_descent, descend, keep_buffers, take_steps
from kshot.inner.descent import named_tensors


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Return reproducible standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Point(nn.Module):
    """A module whose only parameter is a vector."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(values.clone())


def quadratic(A: Tensor, c: Tensor):
    """Return the loss 1/2 |A (theta - c)|^2."""
    return lambda state, data: 0.5 * (A @ (state.parameters["theta"] - c)).square().sum()


@pytest.fixture
def curved():
    """Return A and c of a support loss with Hessian A^T A, and those of a query loss."""
    A, c, Aq, cq = rand(4, 4, seed=1), rand(4, seed=2), rand(4, 4, seed=3), rand(4, seed=4)
    return A, c, Aq, cq


def meta_gradient(theta: Tensor, curved, *, steps: int, lr: float, second_order: bool) -> Tensor:
    """Return the gradient of the query loss after the inner loop by its start, as ``descend`` gives it."""
    A, c, Aq, cq = curved
    point = Point(theta)
    end, _ = descend(quadratic(A, c), State.of(point), None, lr=lr, steps=steps, second_order=second_order)
    quadratic(Aq, cq)(end, None).backward()
    return point.theta.grad


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_meta_gradient_of_quadratics_is_the_closed_form(curved, steps):
    """The meta-gradient is (I - alpha H)^k grad L_q(theta'), with theta' by hand; of first order, grad L_q(theta')."""
    A, c, Aq, cq = curved
    theta, lr = rand(4, seed=5), 0.05
    H, Hq, at = A.T @ A, Aq.T @ Aq, theta.clone()
    for _ in range(steps):
        at = at - lr * H @ (at - c)
    expected = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - lr * H, steps) @ Hq @ (at - cq)
    assert torch.allclose(meta_gradient(theta, curved, steps=steps, lr=lr, second_order=True), expected, atol=1e-12)
    first_order = meta_gradient(theta, curved, steps=steps, lr=lr, second_order=False)
    assert torch.allclose(first_order, Hq @ (at - cq), atol=1e-12)


def test_rates_may_be_one_for_each_parameter(curved):
    """With a vector alpha, theta' = theta - alpha o grad L, and alpha gets the gradient -grad L_q o grad L_s."""
    A, c, Aq, cq = curved
    theta, alpha = rand(4, seed=5), rand(4, seed=6).requires_grad_()
    end, losses = descend(quadratic(A, c), State.of(Point(theta)), None, lr={"theta": alpha}, steps=1)
    gradient = A.T @ A @ (theta - c)
    assert torch.allclose(end.parameters["theta"], theta - alpha * gradient, atol=1e-12)
    assert losses.tolist() == [pytest.approx(float(0.5 * (A @ (theta - c)).square().sum()))]
    quadratic(Aq, cq)(end, None).backward()
    assert torch.allclose(
        alpha.grad, -(Aq.T @ Aq @ (theta - alpha - cq + alpha - alpha * gradient)) * gradient, atol=1e-12
    )


def test_frozen_parameters_do_not_adapt():
    """A parameter that does not require a gradient is among the buffers."""
    net = nn.Linear(2, 1)
    net.bias.requires_grad_(False)
    state = State.of(net)
    assert (set(state.parameters), set(state.buffers)) == ({"weight"}, {"bias"})


def test_a_one_channel_convolution_keeps_its_layout_through_inner_steps():
    """Arithmetic loses the stride of a dimension of size 1; without a correction, the images of an adapted net would be
    laid out anew at a cost of a fifth of the time. The numbers are those of the other layout.
    """
    x, y = rand(3, 1, 8, 8, seed=1), rand(3, 4, seed=2)
    ends = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
        for n, p in enumerate(net.parameters()):
            p.data = rand(*p.shape, seed=10 + n)
        net.to(memory_format=layout)
        seen = []

        def adapted(state, x, y, net=net, seen=seen):
            loss = lambda state, data: F.mse_loss(state.call(net, data[0]), data[1])  # noqa: E731
            end, _ = descend(loss, state, (x, y), lr=0.1, steps=2)
            seen.append(end.parameters["0.weight"].stride(1))
            return dict(end.parameters)

        ends[layout] = Lift("loop").map(adapted, State.of(net), x[None], y[None])
        assert seen == [1 if layout is torch.channels_last else 9]
    for name, p in ends[torch.contiguous_format].items():
        torch.testing.assert_close(ends[torch.channels_last][name], p, rtol=1e-12, atol=1e-12)


def test_a_loss_that_is_not_a_scalar_is_refused():
    """The message gives the shape or the type of the loss."""
    start = State.of(Point(rand(3)))
    with pytest.raises(TrainingError, match=r"got an inner loss of shape \(3,\), expected a scalar"):
        descend(lambda s, _: s.parameters["theta"], start, None, lr=0.1, steps=1)
    with pytest.raises(TrainingError, match=r"got an inner loss of type float, expected a scalar"):
        descend(lambda s, _: 1.0, start, None, lr=0.1, steps=1)


def test_a_loss_that_is_not_finite_is_reported_with_its_place():
    """The message gives the task or the episode, the step, and the remedy."""
    losses = torch.tensor([[1.0, 2.0], [1.0, float("nan")]])
    with pytest.raises(
        TrainingError, match=r"maml: got inner loss nan of task 1 before step 2 of 2, .* lower inner_lr"
    ):
        check_descent(losses, "maml")
    origin = kshot.Origin("train", (40, 41), 0)
    with pytest.raises(TrainingError, match="episode 41 of split 'train'"):
        check_descent(losses, "maml", origin)


def test_a_rule_keeps_its_memory_from_step_to_step():
    """Momentum by hand: v <- v / 2 + gradient, theta <- theta - v; it begins with nothing."""

    def momentum(parameters, gradients, memory):
        v = {n: g if memory is None else memory[n] / 2 + g for n, g in gradients.items()}
        return {n: p - v[n] for n, p in parameters.items()}, v

    start = State({"theta": torch.zeros(())}, {})
    end, losses = take_steps(lambda s, x: s.parameters["theta"] * x, start, [1.0, 1.0, 1.0], momentum)
    assert float(end.parameters["theta"]) == -(1 + 1.5 + 1.75)
    assert losses.tolist() == [0, -1, -2.5]


def test_what_the_loss_writes_into_buffers_is_passed_on_and_does_not_reach_the_start():
    """Each step sees what the one before it wrote; the module keeps its own."""
    mine = torch.zeros(())

    def counting(state, x):
        state.buffers["steps"].add_(1)
        return state.parameters["theta"] * x

    end, _ = descend(counting, State({"theta": torch.ones(())}, {"steps": mine}), 1.0, lr=0.1, steps=3)
    assert float(end.buffers["steps"]) == 3
    assert float(mine) == 0


def test_running_statistics_become_the_mean_over_tasks_and_counters_those_of_the_first():
    """Of all tasks, not of one."""
    norm = nn.BatchNorm1d(1)
    buffers = {
        "running_mean": torch.tensor([[1.0], [4.0], [7.0]]),
        "running_var": torch.tensor([[1.0], [1.0], [4.0]]),
        "num_batches_tracked": torch.tensor([5, 6, 7]),
    }
    keep_buffers(norm, State({}, buffers, tasks=3))
    assert (float(norm.running_mean), float(norm.running_var), int(norm.num_batches_tracked)) == (4.0, 2.0, 5)


def test_the_way_from_the_start_is_what_a_step_of_rate_1_subtracts():
    """Reptile's pseudo-gradient: start minus end."""
    start, end = (State({"theta": torch.tensor(value)}, {}) for value in (5.0, 3.0))
    assert end.away_from(start)["theta"] == 2.0


def test_adam_takes_the_steps_of_torch():
    """The rule is algorithm 1 of Kingma & Ba, also with other factors than the usual ones."""
    goals = [rand(5, seed=seed) for seed in range(6)]
    theta = rand(5, seed=9)
    end, losses = take_steps(
        lambda state, goal: (state.parameters["theta"] - goal).square().sum(),
        State({"theta": theta}, {}),
        goals,
        adam(0.05, betas=(0.8, 0.95), eps=1e-3),
    )
    point = nn.Parameter(theta.clone())
    optimizer = torch.optim.Adam([point], lr=0.05, betas=(0.8, 0.95), eps=1e-3)
    for goal, before in zip(goals, losses, strict=True):
        loss = (point - goal).square().sum()
        assert float(loss.detach()) == pytest.approx(float(before), rel=1e-12)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(end.parameters["theta"], point.detach(), atol=1e-12)


def test_the_state_of_a_module_is_what_torch_names():
    """Shared tensors and layers count once, by their first name; absent ones do not count."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    net[3].weight = net[0].weight
    net[2].append(net[1])
    net.register_module("absent", None)
    net[0].register_parameter("absent", None)
    net[1].register_buffer("kept_here", torch.zeros(3), persistent=False)
    net[2].register_buffer("same", net[1].running_mean)
    parameters, buffers = named_tensors(net)
    for ours, torchs in ((parameters, dict(net.named_parameters())), (buffers, dict(net.named_buffers()))):
        assert list(ours) == list(torchs)
        assert all(ours[name] is torchs[name] for name in torchs)
