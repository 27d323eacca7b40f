"""Test when training validates, stops and saves, and which parameters it keeps."""

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import ClassificationTasks, Engine, Needs, Pool
from kshot._engine.parameters import Parameters
from kshot.testing import sample_tasks


def tasks() -> ClassificationTasks:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    pools = {split: Pool.of(x, np.repeat(np.arange(6), 10)) for split in ("train", "val", "test")}
    return ClassificationTasks(pools, way=2, shot=1, query=2)


class Drifting(nn.Module):
    """A learner that predicts w for every query, and moves w by 1 in each outer step."""

    needs = Needs(kinds=("classification", "regression"), variable_way=True)

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.modes: list[tuple[str, bool]] = []

    def meta_gradient(self, episodes):
        self.modes.append(("training", self.training))
        with torch.no_grad():
            self.w.add_(1)
        return {"loss": 0.0}

    def adapt(self, support):
        self.modes.append(("adapting", self.training))
        width = 1 if support.way is None else support.way  # one number of a target, or of each class
        return lambda x: self.w.expand(*x.shape[:2], width)


class Validations:
    """A hook that notes the iteration and the split of each evaluation."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    @kshot.hookimpl
    def evaluation_end(self, iteration, result):
        self.seen.append((iteration, result.split))


# --- Validation ------------------------------------------------------------------------------------------------------


def test_the_end_of_a_training_is_validated_on_the_validation_split():
    """Also if it is no multiple of ``validate_every``: the last parameters may be the best."""
    heard = Validations()
    Engine(Drifting(), tasks(), hooks=[heard]).train(5, validate_every=2, validation_episodes=2)
    assert heard.seen == [(2, "val"), (4, "val"), (5, "val")]


def test_training_is_in_training_mode_and_validation_is_not():
    """Before, between and after validations."""
    learner = Drifting()
    Engine(learner, tasks(), hooks=()).train(3, validate_every=1, validation_episodes=2)
    assert {training for what, training in learner.modes if what == "training"} == {True}
    assert {training for what, training in learner.modes if what == "adapting"} == {False}
    assert not learner.training


def test_the_smallest_error_is_the_best():
    """A learner that only gets worse keeps the parameters of its first validation."""
    lines = sample_tasks.Lines()
    engine = Engine(Drifting(), lines, hooks=())
    engine.learner.w.data.fill_(10.0)  # far above every target already
    engine.train(4, validate_every=1, validation_episodes=4)
    assert engine.best.iteration == engine.parameters_iteration == 1
    assert float(engine.learner.w) == 11.0


# --- Which parameters are kept ---------------------------------------------------------------------------------------


def scored(*scores: float) -> Parameters:
    """Return the parameters of a net after validations with these scores, in iterations 1, 2, ..."""
    net = nn.Linear(1, 1)
    kept = Parameters(net)
    for iteration, score in enumerate(scores, 1):
        net.weight.data.fill_(iteration)
        kept.validated(score, iteration, closing=False)
    return kept


@pytest.mark.parametrize(
    ("scores", "best", "worse"),
    [
        ((0.5, 0.5, 0.5), 1, 2),  # a tie is no improvement, or a learner that stands still would never stop
        ((0.5, 0.4, 0.6, 0.5), 3, 1),
        ((-2.0, -1.0, -3.0), 2, 1),
    ],
)
def test_the_first_of_the_best_validations_is_kept(scores, best, worse):
    """With its own parameters, and the number of validations since."""
    kept = scored(*scores)
    assert (kept.best.iteration, kept.best.worse) == (best, worse)
    assert kept.best.parameters is not None
    assert float(kept.best.parameters["weight"]) == best


def test_training_stops_after_as_many_validations_as_its_patience():
    """Neither one earlier nor one later."""
    kept = scored(0.5, 0.4, 0.4)
    assert [kept.best.worse_than(patience) for patience in (1, 2, 3, None)] == [True, True, False, False]


def test_a_tie_does_not_delay_early_stopping():
    """A learner whose predictions do not change is stopped at once."""
    engine = Engine(Drifting(), tasks(), hooks=())
    engine.train(20, validate_every=1, validation_episodes=2, patience=2)
    assert (engine.iteration, engine.best.iteration) == (3, 1)
