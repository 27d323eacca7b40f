"""Test what an outer step does with the options of its optimizer, with random numbers, and with several chunks."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import ClassificationTasks, Engine, Needs, Pool, Training
from kshot._engine.outer_step import OuterStep
from kshot.errors import RunError, TrainingError


def tasks() -> ClassificationTasks:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    pools = {split: Pool.of(x, np.repeat(np.arange(6), 10)) for split in ("train", "val", "test")}
    return ClassificationTasks(pools, way=2, shot=1, query=2)


class Pulled(nn.Module):
    """A learner with one parameter w, whose gradient is 3 and 4 in every outer step."""

    needs = Needs(variable_way=True)

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def meta_gradient(self, episodes):
        gradient = torch.tensor([3.0, 4.0])
        self.w.grad = gradient if self.w.grad is None else self.w.grad + gradient
        return {"loss": 0.0}

    def adapt(self, support):
        return lambda x: x.new_zeros(*x.shape[:2], support.way)


class Path:
    """A hook that notes w after each iteration."""

    def __init__(self) -> None:
        self.w: list[torch.Tensor] = []

    @kshot.hookimpl
    def iteration_end(self, engine):
        self.w.append(engine.learner.w.detach().clone())


def path(iterations: int, **optimizer: object) -> torch.Tensor:
    """Return w after each iteration [iterations, 2]."""
    seen = Path()
    Engine(Pulled(), tasks(), optimizer=optimizer, hooks=[seen]).train(iterations)
    return torch.stack(seen.w)


# --- The optimizer and its rate --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"schedule": "constant"}, [1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "constant", "warmup": 2}, [0.5, 1.0, 1.0, 1.0]),
        ({"schedule": "step", "every": 2, "factor": 0.1}, [1.0, 1.0, 0.1, 0.1]),
        ({"schedule": "linear"}, [1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]),
    ],
)
def test_each_iteration_is_taken_with_its_own_rate(schedule, rates):
    """Also the first one, which is iteration 0 of the schedule."""
    moved = path(4, name="sgd", lr=1.0, **schedule).diff(dim=0, prepend=torch.zeros(1, 2))
    torch.testing.assert_close(moved, -torch.tensor(rates)[:, None] * torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"name": "sgd", "momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
        ({"name": "rmsprop", "momentum": 0.5}, lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.5)),
        ({"name": "sgd", "weight_decay": 0.3}, lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.3)),
        ({"name": "adamw", "weight_decay": 0.3}, lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.3)),
        ({"name": "adagrad"}, lambda p: torch.optim.Adagrad(p, 0.1)),
    ],
)
def test_the_options_of_the_optimizer_reach_torch(options, reference):
    """Against torch's own optimizer; an option that is dropped looks like a slightly worse method."""
    w = nn.Parameter(torch.zeros(2))
    optimizer = reference([w])
    expected = []
    for _ in range(3):
        w.grad = torch.tensor([3.0, 4.0])
        optimizer.step()
        expected.append(w.detach().clone())
    torch.testing.assert_close(path(3, lr=0.1, schedule="constant", **options), torch.stack(expected))


def test_a_long_gradient_is_clipped_to_the_norm_that_was_asked_for():
    """By the user's option, and by the learner's own."""
    asked = path(1, name="sgd", lr=1.0, clip=1.0, schedule="constant")
    torch.testing.assert_close(asked, torch.tensor([[-0.6, -0.8]]))

    class Clipped(Pulled):
        training_defaults = Training(optimizer="sgd", lr=1.0, clip=2.5)

    own = Engine(Clipped(), tasks(), hooks=())
    own.train(1)
    torch.testing.assert_close(own.learner.w.detach(), torch.tensor([-1.5, -2.0]))


@pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_stops_the_training(loss):
    """Before its step, and with the number in the message."""

    class Diverges(Pulled):
        def meta_gradient(self, episodes):
            return {**super().meta_gradient(episodes), "loss": loss if self.w.any() else 1.0}

    engine = Engine(Diverges(), tasks(), optimizer={"name": "sgd", "lr": 1.0, "schedule": "constant"}, hooks=())
    with pytest.raises(TrainingError, match=f"iteration 2: loss is {loss}"):
        engine.train(5)
    torch.testing.assert_close(engine.learner.w.detach(), torch.tensor([-3.0, -4.0]))


@pytest.mark.parametrize("theirs", [0, 2])
def test_the_state_of_an_optimizer_of_more_or_fewer_parameters_is_refused(theirs):
    """Their numbers would be those of other parameters."""
    step = OuterStep(Pulled(), kshot.Outer(), kshot.Cpu())
    state = {"state": {}, "param_groups": [{"params": list(range(theirs))}]}
    with pytest.raises(RunError, match=f"got the optimizer of {theirs} trained parameters, expected 1"):
        step.load(state, "a checkpoint")


# --- Random numbers --------------------------------------------------------------------------------------------------


def drawn(seed: int = 0, chunk: int = 1) -> list[float]:
    """Return what a learner of two outer steps per meta-batch draws in two iterations on two tasks each."""
    numbers: list[float] = []

    class Draws(Pulled):
        def meta_gradient(self, episodes):
            for _ in range(2):
                numbers.append(float(torch.rand(())))
                yield super().meta_gradient(episodes)

    Engine(Draws(), tasks(), meta_batch=2, chunk=chunk, seed=seed, hooks=()).train(2)
    return numbers


def test_every_iteration_outer_step_and_episode_has_its_own_random_numbers():
    """One dropout mask for several of them would not average out."""
    numbers = drawn()
    assert len(numbers) == len(set(numbers)) == 8


def test_a_whole_meta_batch_draws_other_numbers_in_each_iteration_and_outer_step():
    """Also if it is computed at once, as with coupled tasks."""

    class Coupled(Pulled):
        needs = Needs(couples_tasks=True)

        def meta_gradient(self, episodes):
            for _ in range(2):
                numbers.append(float(torch.rand(())))
                yield super().meta_gradient(episodes)

    numbers: list[float] = []
    Engine(Coupled(), tasks(), meta_batch=2, hooks=()).train(3)
    assert len(numbers) == len(set(numbers)) == 6


def test_the_numbers_drawn_in_training_follow_from_the_seed():
    """Two seeds of one method would otherwise share their dropout."""
    assert drawn(seed=1) == drawn(seed=1)
    assert not set(drawn(seed=1)) & set(drawn(seed=2))


# --- Chunks ----------------------------------------------------------------------------------------------------------


def test_counters_take_the_value_that_the_first_chunk_gave_them():
    """The mean or the sum over chunks would have no meaning."""

    class Counts(Pulled):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("first", torch.zeros((), dtype=torch.int64))

        def meta_gradient(self, episodes):
            self.first += 1 + episodes.origin.indices[0]
            return super().meta_gradient(episodes)

    engine = Engine(Counts(), tasks(), meta_batch=3, chunk=1, hooks=())
    engine.train(2)
    assert int(engine.learner.first) == (1 + 0) + (1 + 3)


def test_chunks_that_take_different_numbers_of_outer_steps_are_refused():
    """There is no gradient that they have in common."""

    class Uneven(Pulled):
        def meta_gradient(self, episodes):
            for _ in range(1 + episodes.origin.indices[0] % 2):
                yield super().meta_gradient(episodes)

    with pytest.raises(
        TrainingError, match=r"Uneven.meta_gradient took more outer steps on some of the episodes 0\.\.1"
    ):
        Engine(Uneven(), tasks(), meta_batch=2, chunk=1, hooks=()).train(1)


def test_metrics_of_small_chunks_weigh_less():
    """They are the mean over the tasks."""

    class Tells(Pulled):
        def meta_gradient(self, episodes):
            return {**super().meta_gradient(episodes), "size": float(episodes.size)}

    metrics = Engine(Tells(), tasks(), meta_batch=4, chunk=3, hooks=()).train(1)
    assert metrics["size"] == pytest.approx((3 * 3 + 1 * 1) / 4)
