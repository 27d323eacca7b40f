"""Test which tasks, seeds and options a run trains, validates and tests with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kshot
from kshot import Training, registry
from kshot.errors import OptionError
from kshot.testing import sample_learner, sample_tasks

FEW: dict[str, Any] = {"iterations": 2, "evaluate": {"episodes": 2}, "no_run": True, "quiet": True}


class Choosy(sample_learner.NearestMean):
    """A learner that prefers to train on three classes."""

    training_defaults = Training(tasks={"way": 3})


class Greedy(sample_learner.NearestMean):
    """A learner that prefers more classes and queries than the sample tasks have."""

    training_defaults = Training(tasks={"way": 30, "query": 20})


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.default, "_registered", dict(registry.default._registered))
    kshot.register(Choosy, name="choosy")
    kshot.register(Greedy, name="greedy")
    kshot.register(sample_tasks.classification, name="sampled", group="tasks")


class Watch:
    """Note split and way of each evaluation, and the way of each training episode."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    @kshot.hookimpl
    def run_start(self, engine: Any) -> None:
        self.seen.append(("training", engine.tasks.spec.way))

    @kshot.hookimpl
    def evaluation_end(self, result: Any) -> None:
        self.seen.append((result.split, result.shape["way"]))


def test_a_run_validates_and_tests_on_the_tasks_that_were_asked_for() -> None:
    """Only training is on those that the learner prefers."""
    watch = Watch()
    engine = {"validate_every": 1, "validation_episodes": 2}
    kshot.runs.train("choosy", {"name": "sampled", "way": 2}, engine=engine, hooks=[watch], **FEW)
    assert watch.seen == [("training", 3), ("val", 2), ("val", 2), ("test", 2)]


def test_options_of_the_training_win_over_those_that_the_learner_prefers() -> None:
    """They are what the user said."""
    watch = Watch()
    kshot.runs.train("choosy", {"name": "sampled", "way": 2}, training={"way": 4}, hooks=[watch], **FEW)
    assert watch.seen == [("training", 4), ("test", 2)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("own", [None, 0, 5])
def test_the_learner_is_initialised_from_its_own_seed_or_else_from_that_of_the_run(seed: int, own: int | None) -> None:
    """Both are recorded."""
    run = kshot.runs.train("choosy", "sampled", seed=seed, learner_seed=own, **{**FEW, "iterations": 0})
    expected: Any = kshot.learner("choosy", run.engine.tasks.spec, seed=seed if own is None else own)
    trained = dict(run.engine.learner.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in expected.named_parameters())
    assert (run.result.seed, run.result.learner_seed) == (seed, seed if own is None else own)


@pytest.mark.parametrize("seeds", [[], [1, 1], [0, 1, 0]])
def test_seeds_that_repeat_are_refused(seeds: list[int]) -> None:
    """Their interval over seeds would be too small."""
    with pytest.raises(OptionError, match="expected different numbers, at least one"):
        kshot.runs.train_seeds("choosy", "sampled", seeds=seeds, **FEW)


def test_what_a_learner_prefers_is_limited_to_what_the_data_have() -> None:
    """Ten classes of twelve examples: the queries are what the shots leave."""
    spec = kshot.runs.train("greedy", {"name": "sampled", "shot": 3}, **FEW).engine.tasks.spec
    assert (spec.way, spec.shot, spec.query) == (10, 3, 9)
