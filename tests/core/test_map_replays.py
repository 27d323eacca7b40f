"""``Lift.map`` is traced like ``Lift.mean_gradient``, if its results have no graph."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kshot import Lift
from kshot.inner import State, descend, take_steps
from kshot.inner.descent import sgd


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Adapter(nn.Module):
    """Adapt a network to supports, by functions that are made at every call, as learners do."""

    def __init__(self, strategy: str, chunk: int | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
        self.steps, self.lift = 2, Lift(strategy, chunk)

    def loss(self, state, data):
        return F.mse_loss(state.call(self.net, data[0]), data[1])

    def adapt(self, x, y, q):
        def fitted(theta, x, y):
            end, losses = descend(self.loss, theta, (x, y), lr=0.1, steps=self.steps)
            return end.detach(), losses

        with torch.no_grad():
            adapted, losses = self.lift.map(fitted, State.of(self.net).detach(), x, y)
            return adapted, losses, self.lift.map(lambda s, q: s.call(self.net, q), adapted, q)

    @property
    def traces(self) -> int:
        return sum(len(work.traces) > 0 for work in self.lift._replays._works.values())


def data(tasks: int, seed: int) -> tuple[torch.Tensor, ...]:
    return rand(tasks, 6, 3, seed=seed), rand(tasks, 6, 2, seed=seed + 1), rand(tasks, 4, 3, seed=seed + 2)


def compare(traced: Adapter, usual: Adapter, tasks: int, seed: int) -> None:
    (state, losses, out), (usual_state, usual_losses, usual_out) = (
        m.adapt(*data(tasks, seed)) for m in (traced, usual)
    )
    assert torch.equal(losses, usual_losses)
    assert torch.equal(out, usual_out)
    assert state.tasks == usual_state.tasks == tasks
    for got, expected in ((state.parameters, usual_state.parameters), (state.buffers, usual_state.buffers)):
        assert list(got) == list(expected)
        assert all(torch.equal(got[n], expected[n]) for n in expected)


@pytest.mark.parametrize("chunk", [None, 2, 1])
def test_adapted_states_and_predictions_are_the_same_to_the_bit(chunk):
    """The functions are new objects at every call, and one closes over the learner; states begin with B."""
    traced, usual = Adapter("traced", chunk), Adapter("loop" if chunk == 1 else "vmap", chunk)
    for seed in range(4):
        compare(traced, usual, 5, seed)
    assert traced.traces == 2
    traced.steps = usual.steps = 3
    for seed in range(4):
        compare(traced, usual, 5, seed)
    compare(traced, usual, 3, 9)


def test_training_and_evaluation_of_the_network_do_not_share_a_trace():
    """Batch norm computes something else."""
    traced, usual = Adapter("traced"), Adapter("vmap")
    for mode in (True, False, True):
        for seed in range(3):
            compare(traced.train(mode), usual.train(mode), 4, seed)


def test_a_result_that_is_kept_does_not_change_at_the_next_replay():
    """Each replay allocates its own results, also where a result is an input as it was."""
    lift, x = Lift("traced"), rand(4, 3)
    for _ in range(3):
        first, same = lift.map(lambda s, x: (x * 2, x), State({}, {}), x)
    kept = first.clone()
    lift.map(lambda s, x: (x * 2, x), State({}, {}), x + 1)
    assert torch.equal(first, kept)
    x.zero_()
    assert not torch.equal(same, x)


def test_results_that_have_a_graph_keep_it(recwarn):
    """They are always computed by the function, which is no reason to warn."""
    theta, lift = nn.Parameter(rand(3)), Lift("traced")

    def task(state, x):
        return (state.parameters["w"] * x).sum()

    for seed in range(4):
        x = rand(4, 3, seed=seed)
        (gradient,) = torch.autograd.grad(lift.map(task, State({"w": theta}, {}), x).sum(), theta)
        assert torch.allclose(gradient, x.sum(0))
    with torch.no_grad():
        for _ in range(3):
            assert not lift.map(task, State({"w": theta}, {}), x).requires_grad
    assert len(recwarn) == 0
    assert [len(work.traces) for work in lift._replays._works.values()] == [0, 1]


@pytest.mark.parametrize("mask", [False, True])
def test_minibatches_are_chosen_by_number(mask):
    """A choice of examples by their numbers has a known shape, and one by a mask has not."""
    results = []
    for strategy in ("loop", "traced"):
        net, lift = Adapter("loop"), Lift(strategy, chunk=1)

        def task(theta, x, y, order, net=net):
            chosen = order > 0 if mask else order
            steps = take_steps(net.loss, theta, [(x[chosen], y[chosen])], sgd(0.1), second_order=False)
            return steps[0].parameters

        x, y, _ = data(3, 0)
        order = torch.tensor([[0, 2, 3, 3, 1, 1]] * 3)
        with torch.no_grad():
            for _ in range(3):
                if mask and strategy == "traced" and not lift._replays._works:
                    with pytest.warns(UserWarning, match="decides by the numbers in a tensor"):
                        result = lift.map(task, State.of(net.net).detach(), x, y, order)
                else:
                    result = lift.map(task, State.of(net.net).detach(), x, y, order)
        results.append(result)
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])
    assert any(work.traces for work in lift._replays._works.values()) != mask
