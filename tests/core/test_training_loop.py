"""Test when training validates, stops and saves, and which parameters it keeps."""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import ClassificationTasks, Engine, Needs, Pool
from kshot._engine.interruption import Stop
from kshot._engine.parameters import Parameters
from kshot._engine.run_folder import RunFolder
from kshot.errors import OptionError, TrainingError
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
    assert float(engine.learner.w.detach()) == 11.0


def from_point(start: float, **options: object) -> Engine:
    """Return an engine for lines whose learner begins at w = ``start``; targets are near 0."""
    engine = Engine(Drifting(), sample_tasks.Lines(), **{"hooks": (), "optimizer": {"schedule": "constant"}, **options})
    engine.learner.w.data.fill_(start)
    return engine


def w_of(engine: Engine) -> float:
    return float(engine.learner.w.detach())


@pytest.mark.parametrize("resumed", [False, True])
def test_a_validation_at_the_end_of_one_call_does_not_count_in_the_next(resumed, tmp_path):
    """Two calls of ``train`` are one training: that of the first call would not have been validated there."""
    how = {"validate_every": 2, "validation_episodes": 8}
    once, twice = from_point(-3.0), from_point(-3.0)
    once.train(6, **how)
    twice.train(3, **how)
    assert (twice.best.iteration, w_of(twice)) == (3, 0.0)
    if resumed:
        twice.save(tmp_path / "c.pt")
        twice = from_point(-3.0)
        twice.resume(tmp_path / "c.pt")
    twice.train(6, **how)
    assert twice.best.iteration == once.best.iteration != 3
    assert w_of(twice) == w_of(once)


class Seen:
    """A hook that notes w after each iteration."""

    def __init__(self) -> None:
        self.w: list[float] = []

    @kshot.hookimpl
    def iteration_end(self, engine):
        self.w.append(w_of(engine))


def test_training_goes_on_from_the_last_step_and_not_from_the_best(tmp_path):
    """In the same engine and in one that resumes; between two calls the learner has the best parameters."""
    engine, seen = from_point(10.0), Seen()
    engine.train(3, validate_every=1, validation_episodes=4)
    engine.save(tmp_path / "c.pt")
    again = from_point(0.0, hooks=[seen])
    assert again.resume(tmp_path / "c.pt") == 3
    for each in (engine, again):
        assert (w_of(each), each.parameters_iteration, each.evaluate(2, split="val").iteration) == (11.0, 1, 1)
    again.train(5)
    assert seen.w == [14.0, 15.0]


def test_parameters_that_the_user_loads_are_trained_on():
    """They are not replaced by those of the last outer step."""
    seen = Seen()
    engine = from_point(10.0, hooks=[seen])
    engine.train(3, validate_every=1, validation_episodes=4)
    engine.train(4)
    engine.learner.w.data.fill_(-100.0)
    engine.train(5)
    assert seen.w == [11.0, 12.0, 13.0, 14.0, -99.0]


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


# --- What is written -------------------------------------------------------------------------------------------------


def results(run: Path) -> list[tuple[str, int, int]]:
    """Return split, iteration and number of episodes of each result in result.json."""
    if not (run / "result.json").exists():
        return []
    stored = json.loads((run / "result.json").read_text())["results"]
    return [(one["split"], one["iteration"], one["episodes"]) for one in stored]


def test_the_run_folder_has_the_results_of_the_present_parameters(tmp_path):
    """One of each evaluation; those of earlier parameters are gone."""
    engine = Engine(Drifting(), tasks(), hooks=(), optimizer={"schedule": "constant"}, run=tmp_path / "r")
    engine.train(1)
    engine.evaluate(2)
    engine.evaluate(2, split="val")
    engine.evaluate(3)
    assert results(tmp_path / "r") == [("val", 1, 2), ("test", 1, 3)]
    engine.train(2)
    engine.evaluate(2, split="train")
    assert results(tmp_path / "r") == [("train", 2, 2)]


def test_evaluations_by_a_hook_are_not_results_of_the_run(tmp_path):
    """Neither its first nor a later one in the same call."""

    class Looks:
        @kshot.hookimpl
        def iteration_end(self, engine):
            for split in ("val", "test"):
                engine.evaluate(2, split=split)

    Engine(Drifting(), tasks(), hooks=[Looks(), Validations()], run=tmp_path / "r").train(2)
    assert results(tmp_path / "r") == []


def test_a_training_that_stops_early_is_saved_where_it_stopped(tmp_path):
    """Long before the next checkpoint is due."""
    engine = Engine(Drifting(), tasks(), hooks=(), run=tmp_path / "r")
    engine.train(50, validate_every=1, validation_episodes=2, patience=2, checkpoint_seconds=None)
    assert [int(path.stem) for path in RunFolder.open(tmp_path / "r").checkpoints()] == [engine.iteration] == [3]


def test_a_training_that_is_interrupted_in_a_hook_is_not_lost(tmp_path):
    """Also by a second Ctrl-C, which acts at once: the iteration is saved, and is in the metrics."""

    class Stops:
        @kshot.hookimpl
        def iteration_end(self, iteration):
            for _ in range(2 if iteration == 3 else 0):
                signal.raise_signal(signal.SIGINT)

    engine = Engine(Drifting(), tasks(), hooks=["metrics", Stops()], run=tmp_path / "r")
    with pytest.raises(KeyboardInterrupt):
        engine.train(50, checkpoint_seconds=None)
    assert [int(path.stem) for path in RunFolder.open(tmp_path / "r").checkpoints()] == [3]
    lines = (tmp_path / "r/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_parameters_that_are_not_finite_are_never_saved(bad, tmp_path):
    """The last good checkpoint is kept, and the message says so."""

    class Breaks(Drifting):
        def meta_gradient(self, episodes):
            metrics = super().meta_gradient(episodes)
            if self.w > 3:
                self.w.data.fill_(bad)
            return metrics

    engine = Engine(Breaks(), tasks(), hooks=(), run=tmp_path / "r")
    with pytest.raises(TrainingError, match="iteration 4: a parameter is NaN or infinite"):
        engine.train(50, checkpoint_every=1)
    assert [int(path.stem) for path in RunFolder.open(tmp_path / "r").checkpoints()] == [2, 3]


@pytest.mark.parametrize(
    ("schedule", "refused"), [("constant", False), ("step", False), ("linear", True), ("cosine", True)]
)
def test_a_schedule_that_ends_at_the_last_iteration_is_not_extended(schedule, refused):
    """Its rates would jump."""
    engine = Engine(Drifting(), tasks(), hooks=(), optimizer={"schedule": schedule})
    engine.train(2)
    if refused:
        with pytest.raises(OptionError, match="got iterations=4, expected 2"):
            engine.train(4)
    else:
        engine.train(4)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt), (None, SystemExit)]
)
def test_a_stopped_training_ends_as_the_signal_asks(number, error):
    """After SIGTERM, or if another process got the signal, with the exit code that shells give it."""
    stop = Stop(active=False)
    stop.signal = number
    with pytest.raises(error) as caught:
        stop.act("saved")
    if error is SystemExit:
        assert caught.value.code == 128 + signal.SIGTERM


class Losses(Drifting):
    """A learner whose loss in iteration t is that of a list, and 0 after its end."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = losses

    def meta_gradient(self, episodes):
        super().meta_gradient(episodes)
        t = int(self.w) - 1
        return {"loss": self.losses[t] if t < len(self.losses) else 0.0}


def test_training_stops_when_the_loss_has_been_low_for_fifty_iterations_in_a_row():
    """One higher loss begins the count again; the last parameters are validated; without the option nothing stops."""
    engine = Engine(Losses([1.0, *[0.0] * 40, 0.2]), tasks(), hooks=())
    engine.train(200, stop_loss=0.1)
    assert engine.iteration == 92
    engine.train(300, stop_loss=0.1)
    assert engine.iteration == 92
    engine = Engine(Losses([1.0]), tasks(), hooks=())
    engine.train(80)
    assert engine.iteration == 80
    validations = Validations()
    Engine(Losses([1.0]), tasks(), hooks=(validations,)).train(200, stop_loss=0.1, validate_every=40)
    assert [iteration for iteration, _ in validations.seen] == [40, 51]


def test_training_goes_on_at_a_low_loss_while_predictions_are_wrong():
    """As with squared errors of many classes. A learner that reports no accuracy is judged by its loss alone."""

    class Wrong(Losses):
        def meta_gradient(self, episodes):
            metrics = super().meta_gradient(episodes)
            return {**metrics, "accuracy": 0.9 if int(self.w) <= 20 else 1.0}

    engine = Engine(Wrong([]), tasks(), hooks=())
    engine.train(200, stop_loss=0.1)
    assert engine.iteration == 70


def test_a_resumed_training_stops_at_the_same_low_loss(tmp_path):
    """The number of iterations with a low loss is stored."""
    Engine(Losses([1.0]), tasks(), hooks=(), run=tmp_path / "run").train(31, stop_loss=0.1)
    engine = Engine(Losses([1.0]), tasks(), hooks=(), run=tmp_path / "run")
    engine.resume()
    engine.train(200, stop_loss=0.1)
    assert engine.iteration == 51


@pytest.mark.parametrize("stop_loss", [0, -1.0, "low", math.nan])
def test_a_stop_loss_that_is_not_positive_is_refused(stop_loss):
    """No loss is below 0."""
    with pytest.raises(OptionError, match="expected a positive number, or none"):
        Engine(Losses([1.0]), tasks(), hooks=()).train(3, stop_loss=stop_loss)
