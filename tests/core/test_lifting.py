"""``kshot.inner.lifting``: every way of running the tasks of a meta-batch, against a plain loop of autograd."""

import copy
import functools
import gc
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Episode, Examples, Lift, Support
from kshot.errors import OptionError, TrainingError
from kshot.inner import State, descend, keep_buffers, lifting
from kshot.nn import Network

STRATEGIES = [("loop", None), ("vmap", None), ("vmap", 1), ("vmap", 2), ("auto", None)]


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Return reproducible standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Point(nn.Module):
    """A module whose only parameter is a vector."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(values.clone())


# --- Lift -------------------------------------------------------------------------------------------


def small(kind: str) -> Network:
    """Return a smooth net; ``conv`` has batch norm, whose running statistics are buffers."""
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
    """Return x, y of the supports and of the queries of B tasks."""
    shape = (3,) if kind in ("mlp", "layer norm") else (1, 6, 6)
    return rand(B, 6, *shape, seed=7), rand(B, 6, 2, seed=8), rand(B, 4, *shape, seed=9), rand(B, 4, 2, seed=10)


def inner_loss(net: Network):
    """Return the loss of a state on one task's support."""
    return lambda state, xy: F.mse_loss(net.on_support(state, xy[0]), xy[1])


def task_of(net: Network, steps: int):
    """Return a function of one task: its query loss after the inner loop, and its final state."""

    def task(theta: State, x: Tensor, y: Tensor, xq: Tensor, yq: Tensor):
        end, losses = descend(inner_loss(net), theta, (x, y), lr=0.1, steps=steps)
        return {"loss": F.mse_loss(net.on_query(end, xq, x), yq), "inner": losses}, end

    return task


def naive(net: Network, values: tuple[Tensor, ...], steps: int) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Compute gradients, losses and mean running statistics by torch.autograd.grad, task by task, on copies."""
    names = [n for n, _ in net.net.named_parameters()]
    start = {n: b.clone() for n, b in net.net.named_buffers()}
    losses, buffers = [], []
    for x, y, xq, yq in zip(*values, strict=True):
        module = copy.deepcopy(net.net).train()
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.track_running_stats, m.running_mean, m.running_var = False, None, None
        parameters = list(net.net.parameters())
        for _ in range(steps):
            out = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))
            gradients = torch.autograd.grad(F.mse_loss(out, y), parameters, create_graph=True)
            parameters = [p - 0.1 * g for p, g in zip(parameters, gradients, strict=True)]
        running = {n: b.clone() for n, b in start.items()}
        out = torch.func.functional_call(net.net, {**dict(zip(names, parameters, strict=True)), **running}, (xq,))
        losses.append(F.mse_loss(out, yq))
        buffers.append({n: b for n, b in running.items() if b.is_floating_point()})
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(net.net.parameters()))
    mean = {n: torch.stack([b[n] for b in buffers]).mean(0) for n in buffers[0]}
    return dict(zip(names, gradients, strict=True)), torch.stack(losses).detach(), mean


@pytest.mark.parametrize("kind", ["mlp", "conv", "layer norm", "instance norm"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("strategy", "chunk"), STRATEGIES)
def test_every_strategy_gives_the_gradient_of_a_plain_loop(kind, steps, strategy, chunk):
    """Gradients, losses and running statistics equal the naive implementation to 1e-9, however the tasks run."""
    net, values = small(kind), data(kind)
    gradients, losses, buffers = naive(net, values, steps)
    metrics, end = Lift(strategy, chunk).mean_gradient(task_of(net, steps), net.state(), *values)
    assert metrics["inner"].shape == (5, steps)
    assert torch.allclose(metrics["loss"], losses, atol=1e-9)
    for name, p in net.net.named_parameters():
        assert torch.allclose(p.grad, gradients[name], rtol=0, atol=1e-9), name
    keep_buffers(net.net, end)
    for name, b in buffers.items():
        assert torch.allclose(dict(net.net.named_buffers())[name], b, atol=1e-9), name
        assert not torch.allclose(b, torch.zeros_like(b))


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("policy", ["inductive", "support", "transductive"])
def test_every_strategy_gives_the_same_predictions(kind, policy):
    """States with B, as ``adapt`` returns them, give the same predictions, and nothing in the net changes."""
    net, (x, y, xq, _) = small(kind), data(kind)
    net = Network(net.net, policy).eval()
    before = copy.deepcopy(net.state_dict())
    predictions = []
    for strategy, chunk in STRATEGIES:
        lift = Lift(strategy, chunk)
        with torch.no_grad():
            states, _ = lift.map(
                lambda theta, x, y: descend(inner_loss(net), theta, (x, y), lr=0.1, steps=2), net.state(), x, y
            )
            assert states.tasks == 5
            predictions.append(lift.map(net.predict, states, xq, x))
    for other in predictions[1:]:
        assert torch.allclose(predictions[0], other, atol=1e-9)
    assert all(torch.equal(b, before[n]) for n, b in net.state_dict().items())
    if kind == "conv":
        alone = Lift("loop").map(net.predict, states, xq[:, :1], x)
        same = torch.allclose(alone, predictions[0][:, :1], atol=1e-9)
        assert same == (policy != "transductive")


def test_the_support_policy_normalises_queries_by_the_adapted_support():
    """By hand, the batch norm of a query is (x - mean(support)) / sqrt(var(support) + eps)."""
    net = Network(nn.Sequential(nn.BatchNorm1d(2)).double(), "support").train()
    x, q = rand(7, 2, seed=1), rand(3, 2, seed=2) + 4
    expected = (q - x.mean(0)) / (x.var(0) + 1e-5).sqrt()
    assert torch.allclose(net.on_query(net.state(), q, x), expected, atol=1e-12)


def test_a_function_vmap_refuses_runs_one_after_another_and_says_so_once():
    """Python that branches on numbers can't be vmapped; the user is warned once, and the results are right."""

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
    """The user's own mistake is raised as it is."""

    def task(theta: State, x: Tensor):
        return {"loss": (theta.parameters["theta"] @ x).sum()}, theta

    with pytest.raises(RuntimeError, match="size"):
        Lift().map(task, State.of(Point(rand(3))), rand(4, 2))


def test_bad_arguments_are_refused():
    """The message gives what was given, what was expected, and the remedy."""
    point = Point(rand(3))
    with pytest.raises(TrainingError, match=r"got a loss of shape \(3,\) for each task, expected a scalar"):
        Lift().mean_gradient(lambda s, x: ({"loss": s.parameters["theta"] * x}, s), State.of(point), rand(2, 3))
    with pytest.raises(OptionError, match="chunk 0"):
        Lift(chunk=0)


def test_tasks_that_are_looped_leave_no_tensor_of_their_own():
    """The number of living tensors does not grow with the tasks; small leftovers would fragment the heap."""
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


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_every_task_draws_its_own_random_numbers(strategy):
    """One dropout mask for all tasks of a meta-batch would not average out."""

    def task(state, x):
        return torch.rand(3) + 0 * x.sum(), F.dropout(torch.ones(16), 0.5) + 0 * x.sum()

    drawn, masks = Lift(strategy).map(task, State({}, {}), torch.zeros(6, 2))
    assert len({tuple(row.tolist()) for row in drawn}) == 6
    assert len({tuple(row.tolist()) for row in masks}) > 1


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_what_a_task_writes_into_its_buffers_stays_its_own(strategy):
    """Neither another task nor the module sees it."""
    counter = torch.zeros(())

    def task(state, x):
        state.buffers["count"].add_(x)
        return state.buffers["count"] + 0

    counts = Lift(strategy).map(task, State({}, {"count": counter}), torch.tensor([1.0, 2.0, 3.0]))
    assert counts.tolist() == [1.0, 2.0, 3.0]
    assert float(counter) == 0


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_result_shares_no_memory_with_an_argument(strategy, tasks):
    """Otherwise a predictor after no inner step would change when its learner is trained further."""
    theta, lift = nn.Parameter(torch.ones(2)), Lift(strategy)
    for _ in range(3):
        with torch.no_grad():
            state, own = lift.map(lambda s, x: (s, x[0]), State({"w": theta}, {}), x := torch.ones(tasks, 2))
            theta.add_(1)
            x.add_(1)
        assert torch.equal(state.parameters["w"], (theta - 1).detach().expand(tasks, 2))
        assert own.tolist() == [1.0] * tasks


class Scaled(nn.Module):
    """A layer with the parameters of a normalisation, which does not normalise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(5)), nn.Parameter(torch.zeros(5))

    def forward(self, x):
        return x * self.weight + self.bias


def test_a_layer_that_is_replaced_by_a_normalisation_is_chosen_for_anew():
    """vmap's second derivatives of a normalisation with weights of each task need a correction."""
    gradients = []
    for strategy in ("loop", "vmap"):
        torch.manual_seed(0)
        net = Network(nn.Sequential(nn.Linear(4, 5), Scaled(), nn.Tanh(), nn.Linear(5, 2)).double())
        x, y, lift = rand(3, 6, 4), rand(3, 6, 2, seed=1), Lift(strategy)
        for layer in (net.net[1], nn.LayerNorm(5).double()):
            net.net[1] = layer
            net.zero_grad()
            lift.mean_gradient(task_of(net, 1), net.state(), x, y, x, y)
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(*gradients, strict=True))


def calls_of(lift: Lift, x: Tensor) -> int:
    """Return how often a function is called for tasks x [B, *]; vmap calls it once for each chunk."""
    lift.map(once_for_each_call, State({}, {}), x)
    calls = len(CALLS)
    CALLS.clear()
    return calls


CALLS: list[int] = []


def once_for_each_call(state, x):
    CALLS.append(1)
    return x * 2 + 1


def test_a_chunk_has_as_many_tasks_as_were_asked_for():
    """And the first task is run once more, to choose."""
    assert calls_of(Lift("vmap", chunk=2), torch.zeros(5, 3)) == 1 + 3
    assert calls_of(Lift("vmap", chunk=5), torch.zeros(5, 3)) == 1 + 1
    assert calls_of(Lift("loop", chunk=2), torch.zeros(5, 3)) == 5


def test_tasks_of_other_shapes_are_chosen_for_anew():
    """Small tasks run by vmap, and large ones, which use a processor fully, one after another."""
    lift = Lift("auto")
    assert calls_of(lift, torch.zeros(5, 3)) == 1 + 1
    assert calls_of(lift, torch.zeros(5, 2**15)) == 1 + 5
    assert calls_of(lift, torch.zeros(5, 3)) == 1


@pytest.mark.parametrize(("strategy", "calls"), [("auto", 1), ("vmap", 2), ("loop", 1)])
def test_the_gradient_of_a_single_task_is_computed_without_vmap(strategy, calls):
    """Which is slower than a plain call; the function is not run once more to choose."""
    point, made = Point(rand(3)), []

    def task(state, x):
        made.append(torch._C._functorch.is_batchedtensor(x))
        return {"loss": (state.parameters["theta"] * x).sum()}, state

    Lift(strategy).mean_gradient(task, State.of(point), rand(1, 3))
    assert len(made) == calls
    assert any(made) == (strategy == "vmap")


def repeated(state, x, times):
    CALLS.append(1)
    return x.repeat(times).sum()


def test_different_work_of_the_same_code_is_chosen_for_apart():
    """Keywords of a partial, and what a function closes over; a new tensor of the same shape is the same work."""
    lift, x = Lift("auto"), torch.zeros(4, 8)

    def closing(times, tensor):
        return lambda state, x: repeated(state, x + tensor, times)

    def calls(function):
        lift.map(function, State({}, {}), x)
        made = len(CALLS)
        CALLS.clear()
        return made

    for small, large in (
        (functools.partial(repeated, times=2), functools.partial(repeated, times=2**16)),
        (closing(2, torch.zeros(8)), closing(2**16, torch.zeros(8))),
    ):
        assert calls(small) == 1 + 1
        assert calls(large) == 1 + 4
        assert calls(small) == 1
        assert calls(large) == 4
    assert calls(closing(2, torch.ones(8))) == 1


def test_the_number_of_choices_is_bounded(monkeypatch):
    """Also for functions that differ at every call."""
    monkeypatch.setattr(lifting, "MOST_CHOICES", 3)
    lift = Lift("auto")
    for i in range(6):
        lift.map(functools.partial(repeated, times=i + 1), State({}, {}), torch.zeros(2, 3))
    CALLS.clear()
    assert len(lift._chosen) == 3


def test_a_resumed_run_chooses_alike():
    """The choice depends on the work alone, and not on what ran before."""
    shapes = [(5, 3), (5, 2**15), (2, 3), (1, 3)]
    used, new = Lift("auto"), Lift("auto")
    for shape in shapes:
        calls_of(used, torch.zeros(shape))
    for shape in reversed(shapes):
        calls_of(new, torch.zeros(shape))
    assert used._chosen == new._chosen


def test_the_switches_of_a_partial_are_chosen_for_apart(monkeypatch):
    """A function that computes more with a switch has smaller chunks with it, whichever is run first."""
    monkeypatch.setattr("kshot.inner.lifting.CHUNK_BYTES", 1600)

    def task(state, x, *, twice):
        y = x.sin()  # 800 bytes
        return {"y": y.cos().sin().cos() if twice else y}

    for order in ((False, True), (True, False)):
        lift = Lift("vmap")
        for twice in order:
            lift.map(functools.partial(task, twice=twice), State({}, {}), rand(4, 100))
        assert sorted(choice.chunk for choice in lift._chosen.values()) == [1, 2]


def test_the_results_of_all_chunks_are_in_the_order_of_the_tasks():
    """Also those of the third chunk and after it."""
    point = Point(rand(1))

    def task(state, x):
        return {"loss": (state.parameters["theta"] * x).sum(), "x": x}, state

    metrics, _ = Lift("vmap", chunk=2).mean_gradient(task, State.of(point), torch.arange(7.0, dtype=torch.float64))
    assert metrics["x"].tolist() == [0, 1, 2, 3, 4, 5, 6]


# --- per_episode ------------------------------------------------------------------------------------


class Linear(nn.Module):
    """A learner that is written for one episode."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, dtype=torch.float64))

    @kshot.per_episode
    def meta_gradient(self, episode):
        loss = F.mse_loss(episode.query.x @ self.w, episode.query.y)
        return {"loss": loss, "queries": len(episode.query.y)}

    @kshot.per_episode
    def adapt(self, support):
        shift = support.y.mean()
        return lambda x: x @ self.w + shift


def episodes(b: int) -> Episode:
    """Return b random regression episodes with three examples each."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.rand(b, 3, *s, generator=g, dtype=torch.float64) for s in ((2,), ()))
    return Episode(Support(x, y, key=torch.arange(b)), Examples(x + 1, y))


def test_the_gradient_is_the_mean_over_episodes_and_is_added():
    """The gradient computed by hand is added to what was in ``.grad`` before."""
    learner, e = Linear(), episodes(4)
    learner.w.grad = torch.full_like(learner.w, 5.0)
    metrics = learner.meta_gradient(e)
    loss = ((e.query.x @ learner.w - e.query.y) ** 2).mean(1).mean()
    (expected,) = torch.autograd.grad(loss, learner.w)
    assert torch.allclose(learner.w.grad, expected + 5)
    assert float(metrics["loss"]) == pytest.approx(float(loss.detach()))
    assert float(metrics["queries"]) == 3


def test_predictors_are_called_one_for_each_task():
    """Each task's predictor uses its own support."""
    learner, e = Linear(), episodes(3)
    with torch.no_grad():
        predictions = learner.adapt(e.support)(e.query.x)
        assert torch.allclose(predictions, e.query.x @ learner.w + e.support.y.mean(1, keepdim=True))


@pytest.mark.parametrize("answer", [None, 1.0, torch.zeros(2), torch.zeros(())])
def test_a_loss_that_can_not_be_differentiated_is_refused(answer):
    """The message gives the method, the type of the result and what was expected."""

    class Wrong(nn.Module):
        @kshot.per_episode
        def meta_gradient(self, episode):
            return answer

    with pytest.raises(TrainingError, match=r"Wrong.meta_gradient: got .*, expected the episode's loss"):
        Wrong().meta_gradient(episodes(1))


@pytest.mark.parametrize(("tasks", "chunk", "sizes"), [(16, 10, [8, 8]), (9, 2, [2, 2, 2, 2, 1]), (3, 5, [3])])
def test_chunks_have_nearly_the_same_size(tasks, chunk, sizes):
    """So threads that share them finish together."""
    start = State({"a": torch.zeros(2)}, {})
    run = Lift("vmap", chunk)._run(lambda s, x: s.parameters["a"] * x, start, (torch.ones(tasks, 2),), alone=False)
    assert [last - first for first, last, *_ in run] == sizes


@pytest.mark.parametrize("strategy", ["traced", "vmap", "loop"])
def test_inputs_that_need_a_gradient_have_one_in_every_run(strategy):
    """A learner on top of a network trains the network by them, whether the work is traced or not."""
    lift, theta = Lift(strategy), nn.Parameter(torch.tensor(2.0))

    def task(state, x):
        return {"loss": (state.parameters["theta"] * x).square().sum()}, state

    for _ in range(4):
        x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
        lift.mean_gradient(task, State({"theta": theta}, {}), x)
        assert torch.allclose(x.grad, 2 * 4.0 * x.detach() / 2)  # 2 theta^2 x, the mean of two tasks
