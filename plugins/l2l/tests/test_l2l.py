"""``kshot_l2l.l2l``: the paper's formulas, the gradients, what is refused, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import kshot
from kshot import Episode, Examples, Objective, Support
from kshot.errors import DataError, OptionError, TrainingError
from kshot.functional import log_and_sign
from kshot.testing import sample_tasks
from kshot_l2l import L2L
from kshot_l2l.l2l import start, step


def squares(point: Tensor, data: Any) -> Tensor:
    """Compute |W p - y|^2."""
    return (data[0] @ point - data[1]).square().sum()


def objectives(B: int = 2, P: int = 3, seed: int = 0) -> Objective:
    """Return the objectives |W p - y|^2 in float64."""
    generator = torch.Generator().manual_seed(seed)
    initial, W, y = (torch.randn(B, *shape, generator=generator, dtype=torch.float64) for shape in ((P,), (P, P), (P,)))
    return Objective(initial, (W, y), squares)


def episode(objective: Objective, steps: int) -> Episode:
    B = len(objective.initial)
    x = torch.arange(1.0, steps + 1, dtype=objective.initial.dtype).repeat(B, 1)
    empty = torch.zeros(B, 0)
    support = Support(empty, empty, source=objective, key=torch.arange(B))
    return Episode(support, Examples(x, torch.ones_like(x), source=objective))


def learner(P: int = 3, **options: Any) -> L2L:
    """Return a learner in float64 whose updates are large enough to matter."""
    spec = kshot.TaskSpec(kind="objective", input_shape=(), target_shape=(P,), query=4, split_by="index")
    made: L2L = kshot.learner("l2l", spec, seed=1, **{"hidden": 4, "output_scale": 1.0, **options}).double()
    return made


class Linear(nn.Module):
    """A linear optimizer, minus alpha times the gradient, in place of the LSTM."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha, dtype=torch.float64))

    def forward(self, gradient: Tensor, state: Any) -> tuple[Tensor, Any]:
        return -self.alpha * gradient, ()


# --- The formulas ---------------------------------------------------------------------------------


def test_preprocessing_by_hand_on_both_branches():
    """With p = 10: (log|g| / 10, sign g) from e^-10 on, below it (-1, e^10 g); at the border both give (-1, 1)."""
    g = torch.tensor([math.e**-5, -1.0, math.e**10, -(math.e**-11), math.e**-12, 0.0, math.e**-10], dtype=torch.float64)
    expected = [(-0.5, 1), (0, -1), (1, 1), (-1, -math.exp(-1)), (-1, math.exp(-2)), (-1, 0), (-1, 1)]
    assert torch.allclose(log_and_sign(g, 10.0), torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_a_linear_optimizer_is_sgd():
    """The points are those of torch.optim.SGD on each task alone, in float64, after each of 30 steps."""
    problems = objectives()
    l2l = learner()
    l2l.optimizer = Linear(0.03)
    x = torch.arange(31.0).repeat(2, 1)
    points = l2l.adapt(episode(problems, 30).support)(x)
    for b in range(2):
        p = problems.initial[b].clone().requires_grad_()
        sgd = torch.optim.SGD([p], lr=0.03)
        for t in range(31):
            assert torch.allclose(points[b, t], p, atol=1e-12)
            sgd.zero_grad()
            (problems.data[0][b] @ p - problems.data[1][b]).square().sum().backward()
            sgd.step()


def test_permuted_coordinates_are_optimized_to_permuted_points():
    """One network serves all coordinates, so permuting them permutes the updates."""
    problems, order = objectives(P=5), torch.tensor([3, 0, 4, 1, 2])
    W, y = problems.data
    permuted = Objective(problems.initial[:, order], (W[:, :, order], y), problems.function)
    l2l = learner(P=5)
    x = torch.arange(1.0, 9).repeat(2, 1)
    plain, other = (l2l.adapt(episode(o, 8).support)(x) for o in (problems, permuted))
    assert torch.allclose(plain[:, :, order], other, atol=1e-12)
    assert not torch.allclose(plain, other, atol=1e-3)


def test_the_output_scale_is_a_factor_of_the_update():
    """With equal weights, the first update at a scale of 0.1 is a tenth of that at a scale of 1."""
    problems, x = objectives(), torch.ones(2, 1)
    plain, small = (learner(output_scale=scale).adapt(episode(problems, 1).support)(x)[:, 0] for scale in (1.0, 0.1))
    assert torch.allclose(small - problems.initial, 0.1 * (plain - problems.initial), atol=1e-15, rtol=1e-12)


def naive(l2l: L2L, problems: Objective, steps: int, b: int, state: dict[str, Any], second_order: bool) -> list[Tensor]:
    """Compute the losses of ``steps`` updates of task b, coordinate by coordinate, with the gradient by hand.

    ``state`` is the point and the two (h, c) of each coordinate; it is set to those after the unroll.
    """
    W, y = (t[b] for t in problems.data)
    losses = []
    for _ in range(steps):
        gradient = 2 * W.T @ (W @ state["point"] - y)
        gradient = gradient if second_order else gradient.detach()
        moved = []
        for i in range(len(gradient)):
            g, size = gradient[i], gradient[i].abs()
            if size >= math.exp(-10):
                inputs = torch.stack([size.log() / 10, g.sign()])
            else:
                inputs = torch.stack([-torch.ones_like(g), math.exp(10) * g])
            first, second = state[f"lstm {i}"]
            first = l2l.optimizer.cells[0](inputs[None], first)
            second = l2l.optimizer.cells[1](first[0], second)
            state[f"lstm {i}"] = (first, second)
            moved.append(l2l.optimizer.head(second[0])[0, 0])
        state["point"] = state["point"] + torch.stack(moved)
        losses.append((W @ state["point"] - y).square().sum())
    return losses


@pytest.mark.parametrize("second_order", [False, True])
def test_outer_steps_are_those_of_a_naive_truncated_unroll(second_order):
    """Seven steps in unrolls of three are three outer steps of Adam, with a constant state between them."""
    problems = objectives(B=2, P=2)
    fast, slow = (learner(P=2, unroll=3, second_order=second_order) for _ in range(2))
    adam = torch.optim.Adam(fast.parameters(), lr=0.05)
    reported = []
    for metrics in fast.meta_gradient(episode(problems, 7)):
        reported.append(float(metrics["loss"]))
        adam.step()
        adam.zero_grad()
    adam = torch.optim.Adam(slow.parameters(), lr=0.05)
    zero = (torch.zeros(1, 4, dtype=torch.float64),) * 2
    states = [{"point": problems.initial[b], "lstm 0": (zero, zero), "lstm 1": (zero, zero)} for b in range(2)]
    expected = []
    for steps in (3, 3, 1):
        loss = torch.stack([torch.stack(naive(slow, problems, steps, b, states[b], second_order)) for b in range(2)])
        loss.mean().backward()
        expected.append(float(loss.mean().detach()))
        adam.step()
        adam.zero_grad()
        states = [kshot.episode.map_tensors(Tensor.detach, state) for state in states]
    assert reported == pytest.approx(expected, rel=1e-10)
    for mine, other in zip(fast.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-10)


@pytest.mark.parametrize("second_order", [False, True])
def test_traces_of_unrolls_train_to_the_same_bits(second_order):
    """The first unroll, those that have a state, and a shorter last one each have a trace."""
    learners = [learner(unroll=3, second_order=second_order, strategy=strategy) for strategy in ("loop", "traced")]
    for each in learners:
        adam = torch.optim.Adam(each.parameters(), lr=0.05)
        for seed in range(3):
            for _ in each.meta_gradient(episode(objectives(seed=seed), 8)):
                adam.step()
                adam.zero_grad()
    usual, traced = learners
    assert [len(work.traces) for work in traced.lift._replays._works.values()] == [1, 1, 1]
    assert all(map(torch.equal, usual.parameters(), traced.parameters()))


def test_with_second_order_the_gradient_is_that_of_the_unroll():
    """The gradient agrees with central differences by every parameter in float64; without second order it does not."""
    problems = objectives()

    def loss(l2l: L2L) -> float:
        with torch.no_grad():
            at, losses = start(problems), []
            for _ in range(4):
                at = step(l2l.optimizer, problems, at)
                losses.append(at.loss)
            return float(torch.stack(losses).mean())

    gaps = {}
    for second_order in (True, False):
        l2l = learner(hidden=2, preprocessing=1.0, second_order=second_order)
        next(l2l.meta_gradient(episode(problems, 4)))
        claimed = torch.cat([p.grad.flatten() for p in l2l.parameters()])
        slopes = []
        for p in l2l.parameters():
            flat = p.data.view(-1)
            for i in range(len(flat)):
                value, ends = flat[i].item(), []
                for change in (1e-6, -1e-6):
                    flat[i] = value + change
                    ends.append(loss(l2l))
                flat[i] = value
                slopes.append((ends[0] - ends[1]) / 2e-6)
        apart = (claimed - torch.tensor(slopes, dtype=torch.float64)).abs().max()
        gaps[second_order] = float(apart / claimed.abs().max())
    assert gaps[True] < 1e-8
    assert gaps[False] > 1e-4
    assert [learner(second_order=s).needs.exact_gradient for s in (True, False)] == [True, False]


def test_the_engine_takes_an_outer_step_an_unroll():
    """Six steps in unrolls of two are three outer steps on each of four meta-batches."""
    tasks = sample_tasks.Quadratics(steps=6)
    engine = kshot.Engine(L2L(tasks.spec, unroll=2), tasks, meta_batch=2, hooks=())
    engine.train(4)
    assert {int(s["step"]) for s in engine.optimizer.state.values()} == {12}


# --- Use ------------------------------------------------------------------------------------------


def test_a_predictor_is_asked_for_any_steps_and_keeps_no_graph():
    """Step 0 is the initial point, points come in the requested order, and gradients may be enabled or not."""
    problems = objectives()
    l2l = learner()
    predict = l2l.adapt(episode(problems, 5).support)
    whole = predict(torch.arange(6.0).repeat(2, 1))
    asked = torch.tensor([[5.0, 0.0], [2.0, 2.0]])
    some = predict(asked)
    assert torch.equal(whole[:, 0], problems.initial)
    assert torch.equal(some, torch.stack([whole[0, [5, 0]], whole[1, [2, 2]]]))
    assert not whole.requires_grad
    with torch.no_grad():
        assert torch.equal(predict(asked), some)


def test_it_runs_on_more_coordinates_than_it_was_built_for():
    """Because it acts on single coordinates, an optimizer trained on ten coordinates runs on any number."""
    found = learner(P=3).adapt(episode(objectives(P=7), 2).support)(torch.ones(2, 1))
    assert found.shape == (2, 1, 7)


def test_in_bfloat16_points_and_losses_stay_float32():
    """Only the network may be rounded; the objective is not."""
    tasks = sample_tasks.Quadratics(steps=6)
    l2l, given = L2L(tasks.spec, unroll=3), tasks.sample("test", [0, 1])
    exact = l2l.adapt(given.support)(given.query.x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = l2l.adapt(given.support)(given.query.x)
        metrics = list(l2l.meta_gradient(given))
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, atol=2e-2)
    assert all(m["loss"].dtype == torch.float32 for m in metrics)


def test_its_trace_is_what_it_did():
    """A trace has the losses and gradients at its points, and the updates between them."""
    problems = objectives()
    l2l, given = learner(), episode(objectives(), 4)
    found = l2l.trace(given)
    points = l2l.adapt(given.support)(torch.arange(5.0).repeat(2, 1))
    assert torch.equal(found["point"], points)
    W, y = problems.data
    residuals = torch.einsum("bij,btj->bti", W, points) - y[:, None]
    assert torch.allclose(found["loss"], residuals.square().sum(-1), atol=1e-12)
    assert torch.allclose(found["gradient"], 2 * torch.einsum("bij,bti->btj", W, residuals), atol=1e-12)
    assert torch.allclose(found["update"], points[:, 1:] - points[:, :-1], atol=1e-12)


# --- What it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["hidden", "preprocessing", "output_scale", "unroll"])
def test_options_that_are_not_positive_are_refused(option):
    """All wrong options are reported at once, before anything is built."""
    with pytest.raises(OptionError, match=f"l2l: got {option} 0.*expected positive"):
        learner(**{option: 0})


@pytest.mark.parametrize("x", [[[-1.0]], [[0.5]], [[]]], ids=["negative", "between", "none"])
def test_steps_that_are_no_numbers_of_updates_are_refused(x):
    """There is no point after half an update."""
    with pytest.raises(DataError, match="whole numbers of updates"):
        learner().adapt(episode(objectives(B=1), 2).support)(torch.tensor(x))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"function": lambda p, d: p.square()}, r"got a loss of shape \[3\].*expected a scalar"),
        ({"function": lambda p, d: d[1].sum()}, "does not depend on the point"),
        ({"initial": torch.zeros(3, 3)}, r"got points of shape \[3, 3\]"),
    ],
    ids=["vector", "ignores", "other B"],
)
def test_malformed_objectives_are_refused_at_the_first_step(changed, message):
    """They are refused both in training and in use."""
    wrong = episode(attrs.evolve(objectives(), **changed), 2)
    with pytest.raises(DataError, match=message):
        next(learner().meta_gradient(wrong))
    with pytest.raises(DataError, match=message):
        learner().adapt(wrong.support)(wrong.query.x)


def test_a_loss_that_is_not_finite_is_reported_by_task_and_step():
    """log p by steps of 0.4 / p goes from 1 to 0.6 to -0.07, where it is NaN; from 10 it stays finite."""
    logs = Objective(torch.tensor([[10.0], [1.0]]), (), lambda p, d: p.log().sum())
    l2l = learner(P=1, unroll=1)
    l2l.optimizer = Linear(0.4)
    given = attrs.evolve(episode(logs, 3), origin=kshot.Origin("train", (7, 8), 0))
    with pytest.raises(TrainingError, match="got loss nan of task 1, episode 8 at step 2"):
        list(l2l.meta_gradient(given))


# --- It learns ------------------------------------------------------------------------------------


def test_it_learns_to_descend_on_quadratics_it_has_not_seen():
    """The mean loss is at most mean + 3 sigma of 5 seeds (0.400, sigma 0.018); without updates it is 3."""
    tasks = sample_tasks.Quadratics(steps=20)
    engine = kshot.Engine(kshot.learner("l2l", tasks.spec, seed=0), tasks, meta_batch=16, hooks=())
    untrained = engine.evaluate(200).mean
    engine.train(150)
    assert untrained > 2
    assert engine.evaluate(200).mean < 0.454
