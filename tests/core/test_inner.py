"""The inner loop and its lifting over tasks: identities in float64, and the ways of running it against each other."""

import copy
import gc
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Lift
from kshot.errors import OptionError, TrainingError
from kshot.inner import State, check_descent, descend, keep_buffers
from kshot.nn import Network, network

STRATEGIES = [("loop", None), ("vmap", None), ("vmap", 1), ("vmap", 2), ("auto", None)]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Point(nn.Module):
    """A parameter vector."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(values.clone())


def quadratic(A: Tensor, c: Tensor):
    return lambda state, data: 0.5 * (A @ (state.parameters["theta"] - c)).square().sum()


@pytest.fixture
def curved():
    """L_s = 1/2 |A (theta - c)|^2 with Hessian H = A^T A, and another for the queries."""
    A, c, Aq, cq = rand(4, 4, seed=1), rand(4, seed=2), rand(4, 4, seed=3), rand(4, seed=4)
    return A, c, Aq, cq


def meta_gradient(theta: Tensor, curved, *, steps: int, lr: float, second_order: bool) -> Tensor:
    A, c, Aq, cq = curved
    point = Point(theta)
    end, _ = descend(quadratic(A, c), State.of(point), None, lr=lr, steps=steps, second_order=second_order)
    quadratic(Aq, cq)(end, None).backward()
    return point.theta.grad


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_meta_gradient_of_quadratics_is_the_closed_form(curved, steps):
    """(I - alpha H)^k grad L_q(theta'), with theta' by hand; MAML's equation where everything is known."""
    A, c, Aq, cq = curved
    theta, lr = rand(4, seed=5), 0.05
    H, Hq, at = A.T @ A, Aq.T @ Aq, theta.clone()
    for _ in range(steps):
        at = at - lr * H @ (at - c)
    expected = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - lr * H, steps) @ Hq @ (at - cq)
    assert torch.allclose(meta_gradient(theta, curved, steps=steps, lr=lr, second_order=True), expected, atol=1e-12)
    first = meta_gradient(theta, curved, steps=steps, lr=lr, second_order=False)
    assert torch.allclose(first, Hq @ (at - cq), atol=1e-12)


def test_rates_may_be_one_for_each_parameter(curved):
    """theta' = theta - alpha o grad L with a vector alpha, which gets a gradient of its own: -grad L_q o grad L_s."""
    A, c, Aq, cq = curved
    theta, alpha = rand(4, seed=5), rand(4, seed=6).requires_grad_()
    end, losses = descend(quadratic(A, c), State.of(Point(theta)), None, lr={"theta": alpha}, steps=1)
    slope = A.T @ A @ (theta - c)
    assert torch.allclose(end.parameters["theta"], theta - alpha * slope, atol=1e-12)
    assert losses.tolist() == [pytest.approx(float(0.5 * (A @ (theta - c)).square().sum()))]
    quadratic(Aq, cq)(end, None).backward()
    assert torch.allclose(alpha.grad, -(Aq.T @ Aq @ (theta - alpha - cq + alpha - alpha * slope)) * slope, atol=1e-12)


# --- Lifting: every way of running the tasks against a plain loop of autograd ------------------------


def small(kind: str) -> Network:
    """Smooth nets; ``conv`` has batch norm, whose running statistics are buffers."""
    torch.manual_seed(0)
    if kind == "mlp":
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    elif kind == "layer norm":
        net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2))
    elif kind == "instance norm":
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.Softplus(), nn.Flatten())
        net.append(nn.Linear(3 * 4 * 4, 2))
    else:
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Flatten()
        )
        net.append(nn.Linear(3 * 2 * 2, 2))
    return Network(net.double(), "inductive").train()


def data(kind: str, B: int = 5) -> tuple[Tensor, ...]:
    shape = (3,) if kind in ("mlp", "layer norm") else (1, 6, 6)
    return rand(B, 6, *shape, seed=7), rand(B, 6, 2, seed=8), rand(B, 4, *shape, seed=9), rand(B, 4, 2, seed=10)


def inner_loss(net: Network):
    return lambda state, xy: F.mse_loss(net.on_support(state, xy[0]), xy[1])


def task_of(net: Network, steps: int):
    def task(theta: State, x: Tensor, y: Tensor, xq: Tensor, yq: Tensor):
        end, losses = descend(inner_loss(net), theta, (x, y), lr=0.1, steps=steps)
        return {"loss": F.mse_loss(net.on_query(end, xq, x), yq), "inner": losses}, end

    return task


def naive(net: Network, values: tuple[Tensor, ...], steps: int) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Gradients, losses and mean running statistics by torch.autograd.grad, a task after another, on copies."""
    names = [n for n, _ in net.net.named_parameters()]
    start = {n: b.clone() for n, b in net.net.named_buffers()}
    losses, buffers = [], []
    for x, y, xq, yq in zip(*values, strict=True):
        module = copy.deepcopy(net.net).train()
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.track_running_stats, m.running_mean, m.running_var = False, None, None
        own = list(net.net.parameters())
        for _ in range(steps):
            out = torch.func.functional_call(module, dict(zip(names, own, strict=True)), (x,))
            slopes = torch.autograd.grad(F.mse_loss(out, y), own, create_graph=True)
            own = [p - 0.1 * g for p, g in zip(own, slopes, strict=True)]
        seen = {n: b.clone() for n, b in start.items()}
        out = torch.func.functional_call(net.net, {**dict(zip(names, own, strict=True)), **seen}, (xq,))
        losses.append(F.mse_loss(out, yq))
        buffers.append({n: b for n, b in seen.items() if b.is_floating_point()})
    slopes = torch.autograd.grad(torch.stack(losses).mean(), list(net.net.parameters()))
    mean = {n: torch.stack([b[n] for b in buffers]).mean(0) for n in buffers[0]}
    return dict(zip(names, slopes, strict=True)), torch.stack(losses).detach(), mean


@pytest.mark.parametrize("kind", ["mlp", "conv", "layer norm", "instance norm"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("strategy", "chunk"), STRATEGIES)
def test_every_strategy_gives_the_gradient_of_a_plain_loop(kind, steps, strategy, chunk):
    """Vmapped, chunked or looped: gradients, losses and running statistics to 1e-9 of the naive implementation."""
    net, values = small(kind), data(kind)
    slopes, losses, buffers = naive(net, values, steps)
    metrics, end = Lift(strategy, chunk).mean_gradient(task_of(net, steps), net.state(), *values)
    assert metrics["inner"].shape == (5, steps)
    assert torch.allclose(metrics["loss"], losses, atol=1e-9)
    for name, p in net.net.named_parameters():
        assert torch.allclose(p.grad, slopes[name], rtol=0, atol=1e-9), name
    keep_buffers(net.net, end)
    for name, b in buffers.items():
        assert torch.allclose(dict(net.net.named_buffers())[name], b, atol=1e-9), name
        assert not torch.allclose(b, torch.zeros_like(b))


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("policy", ["inductive", "support", "transductive"])
def test_every_strategy_gives_the_same_predictions(kind, policy):
    """States that carry B, as ``adapt`` returns them, and every policy of normalisation; nothing in the net moves."""
    net, (x, y, xq, _) = small(kind), data(kind)
    net = Network(net.net, policy).eval()
    before = copy.deepcopy(net.state_dict())
    found = []
    for strategy, chunk in STRATEGIES:
        lift = Lift(strategy, chunk)
        with torch.no_grad():
            states, _ = lift.map(
                lambda theta, x, y: descend(inner_loss(net), theta, (x, y), lr=0.1, steps=2), net.state(), x, y
            )
            assert states.tasks == 5
            found.append(lift.map(net.predict, states, xq, x))
    for other in found[1:]:
        assert torch.allclose(found[0], other, atol=1e-9)
    assert all(torch.equal(b, before[n]) for n, b in net.state_dict().items())
    if kind == "conv":
        alone = Lift("loop").map(net.predict, states, xq[:, :1], x)
        same = torch.allclose(alone, found[0][:, :1], atol=1e-9)
        assert same == (policy != "transductive")


def test_the_support_policy_normalises_queries_by_the_adapted_support():
    """By hand: the batch norm's output for a query is (x - mean(support)) / sqrt(var(support) + eps)."""
    net = Network(nn.Sequential(nn.BatchNorm1d(2)).double(), "support").train()
    x, q = rand(7, 2, seed=1), rand(3, 2, seed=2) + 4
    expected = (q - x.mean(0)) / (x.var(0) + 1e-5).sqrt()
    assert torch.allclose(net.on_query(net.state(), q, x), expected, atol=1e-12)


def test_frozen_parameters_do_not_adapt():
    """What does not require a gradient is a constant of the task."""
    net = nn.Linear(2, 1)
    net.bias.requires_grad_(False)
    state = State.of(net)
    assert (set(state.parameters), set(state.buffers)) == ({"weight"}, {"bias"})


# --- Choices ----------------------------------------------------------------------------------------


def test_small_nets_are_vmapped_and_large_ones_looped():
    """``auto`` goes by the size of one task's results, never by time: the same run chooses the same way again."""
    spec = kshot.TaskSpec(kind="regression", input_shape=(3,), target_shape=(2,), shot=6, query=4)
    lift, net = Lift(), network("mlp", spec)
    values = tuple(v.float() for v in data("mlp"))
    lift.mean_gradient(task_of(net, 1), net.state(), *values)
    (chosen,) = lift._chosen.values()
    assert chosen.chunk > 25
    images = kshot.TaskSpec(kind="classification", input_shape=(1, 28, 28), way=2, shot=3, query=10)
    lift, net = Lift(), network("conv4", images)
    x = torch.rand(1, 20, 1, 28, 28)
    lift.mean_gradient(task_of(net, 1), net.state(), x, torch.rand(1, 20, 2), x, torch.rand(1, 20, 2))
    assert [c.chunk for c in lift._chosen.values()] == [None]


def test_a_function_vmap_refuses_runs_one_after_another_and_says_so_once():
    """Python that looks at the numbers can't be vmapped; the user is told, not stopped, and not told again."""

    def task(theta: State, x: Tensor):
        loss = (theta.parameters["theta"] * x).sum()
        return {"loss": loss if loss.item() < 1e9 else 0 * loss}, theta

    point, lift = Point(rand(3)), Lift()
    with pytest.warns(UserWarning, match="one after another"):
        lift.mean_gradient(task, State.of(point), rand(4, 3))
    assert torch.allclose(point.theta.grad, rand(4, 3).mean(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lift.mean_gradient(task, State.of(point), rand(4, 3))
    with pytest.raises(TrainingError, match="strategy='loop'"):
        Lift("vmap").mean_gradient(task, State.of(point), rand(4, 3))


def test_an_error_in_the_function_itself_is_not_blamed_on_vmap():
    """The user's own mistake surfaces as it is."""

    def task(theta: State, x: Tensor):
        return {"loss": (theta.parameters["theta"] @ x).sum()}, theta

    with pytest.raises(RuntimeError, match="size"):
        Lift().map(task, State.of(Point(rand(3))), rand(4, 2))


def test_bad_input_is_named():
    """What came, what was expected and what to do."""
    point = Point(rand(3))
    with pytest.raises(TrainingError, match=r"inner loss .* shape \(3,\), expected a scalar"):
        descend(lambda s, _: s.parameters["theta"], State.of(point), None, lr=0.1, steps=1)
    with pytest.raises(TrainingError, match=r"loss of a task is of shape \(3,\)"):
        Lift().mean_gradient(lambda s, x: ({"loss": s.parameters["theta"] * x}, s), State.of(point), rand(2, 3))
    losses = torch.tensor([[1.0, 2.0], [1.0, float("nan")]])
    with pytest.raises(TrainingError, match=r"task 1 is nan before step 2 of 2; lower inner_lr"):
        check_descent(losses, "maml")
    origin = kshot.Origin("train", (40, 41), 0)
    with pytest.raises(TrainingError, match="episode 41 of split 'train'"):
        check_descent(losses, "maml", origin)
    with pytest.raises(OptionError, match="chunk 0"):
        Lift(chunk=0)


def test_a_one_channel_convolution_keeps_its_layout_through_inner_steps():
    """Arithmetic forgets the stride of a size of 1; the images of an adapted net would be laid out anew, for a fifth
    of the time. The numbers are those of the other layout."""
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


def test_tasks_that_are_looped_leave_no_tensor_of_their_own():
    """However many have gone before, as many tensors live: what is left between large blocks splits the memory."""
    point, living = Point(rand(3)), []

    def task(state, x):
        gc.collect()
        living.append(sum(type(o) is Tensor for o in gc.get_objects()))
        theta = state.parameters["theta"]
        return {"loss": (theta * x).sum(), "more": x * 2}, state

    metrics, _ = Lift("loop").mean_gradient(task, State.of(point), rand(6, 3))
    assert metrics["more"].shape == (6, 3)
    assert torch.equal(metrics["more"], 2 * rand(6, 3))
    assert len(set(living[2:])) == 1, living


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3, affine=True), nn.GroupNorm(1, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_normalisation_is_vmapped_in_half_precision_too(norm, training):
    """Where the processor has bfloat16 that is how everything runs; without a warning, and to its three digits."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.Flatten(), nn.Linear(3 * 16, 2)).train(training)
    x, y = rand(4, 5, 2, 6, 6).float(), rand(4, 5, 2, seed=1).float()

    def task(state, x, y):
        def loss(s, _):
            return (torch.func.functional_call(net, (s.parameters, s.buffers), (x,)).float() - y).square().mean()

        end, _ = descend(loss, state, None, lr=0.1, steps=2, second_order=True)
        return {"loss": loss(end, None)}, end

    found = {}
    for strategy in ("loop", "vmap"):
        net.zero_grad()
        with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
            warnings.simplefilter("error")
            metrics, _ = Lift(strategy).mean_gradient(task, State.of(net), x, y)
        found[strategy] = torch.cat([p.grad.flatten() for p in net.parameters()]), metrics["loss"]
    for looped, vmapped in zip(*found.values(), strict=True):
        assert float((looped - vmapped).norm() / looped.norm()) < 0.05
