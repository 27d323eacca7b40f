"""Test how a run on a small folder stops early, and what it says about its figures."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kshot
from kshot import Training, registry
from kshot.data.folder_tasks import FolderTasks
from kshot.data.splits import default_shares, rows_of, split_classes
from kshot.testing import sample_learner

QUIET: dict[str, Any] = {"no_run": True, "evaluate": {"episodes": 40, "baselines": False}}


class Many(sample_learner.NearestMean):
    """A learner that prefers to train on 30 classes, for 200 iterations."""

    training_defaults = Training(iterations=200, lr=1e-3, tasks={"way": 30})


def folder(classes: int = 20, each: int = 6, way: int | None = None, query: int | None = 2) -> FolderTasks:
    """Make tasks of a folder whose examples are random."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(classes * each, 4))).float()
    names = {f"c{i}": [f"c{i}/{j}" for j in range(each)] for i in range(classes)}
    splits = rows_of(names, split_classes([*names], default_shares(classes)))
    how: Any = {"input_shape": (4,), "input_range": None, "prepare": torch.as_tensor}
    return FolderTasks(splits, lambda: (x, "rows"), way=way, query=query, **how)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry.default, "_registered", dict(registry.default._registered))
    monkeypatch.chdir(tmp_path)
    kshot.register(Many, name="many")
    kshot.register(folder, name="a-folder", group="tasks")


def test_a_training_on_a_folder_validates_and_stops_early(caplog: pytest.LogCaptureFixture) -> None:
    """Twenty times at most, and ends with the best parameters; it says how to switch this off, and records it."""
    with caplog.at_level(logging.INFO, "kshot.runs"):
        run = kshot.runs.train("many", "a-folder", run="it", evaluate=QUIET["evaluate"])
    assert "note: validating every 10 iterations" in caplog.text
    assert run.iterations < 200
    assert run.iterations == run.engine.best.iteration + 5 * 10
    assert run.result.iteration == run.engine.best.iteration
    caplog.clear()
    assert kshot.runs.resume("it", quiet=True).iterations == run.iterations
    assert "validating" not in caplog.text


@pytest.mark.parametrize(
    ("tasks", "engine"),
    [
        ({"name": "a-folder"}, {"validate_every": None}),
        ({"name": "a-folder"}, {"validate_every": 150}),
        ({"name": "a-folder"}, {"split": "trainval"}),
        ({"name": "a-folder", "classes": 19}, {}),
        ({"name": "a-folder", "classes": 20, "way": 6}, {"split": "test"}),
    ],
)
def test_a_user_s_choice_and_a_folder_without_validation_train_to_the_end(tasks: Any, engine: Any) -> None:
    """Unless the loss is almost 0, which it is not for random examples."""
    training: Any = {"way": 5} if tasks.get("way") is None else {"way": 5, "query": 1}
    test = [{"way": 5}]
    run = kshot.runs.train("many", tasks, training=training, test=test, engine=engine, quiet=True, **QUIET)
    assert run.iterations == 200


def test_a_short_training_and_one_on_a_data_set_are_as_before() -> None:
    """The engine's own defaults are used."""
    run = kshot.runs.train("many", "a-folder", iterations=60, quiet=True, **QUIET)
    assert (run.iterations, run.engine.best.iteration) == (60, -1)


def test_a_training_on_a_folder_stops_when_the_loss_is_almost_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without validation."""
    monkeypatch.setattr(Many, "meta_gradient", lambda self, episodes: {"loss": 0.0})
    run = kshot.runs.train("many", {"name": "a-folder", "classes": 12}, quiet=True, **QUIET)
    assert run.iterations == 50


def test_what_is_not_trained_is_not_said_to_be_trained_with_fewer_classes(caplog: pytest.LogCaptureFixture) -> None:
    """The note about the way of training is for trainings."""
    with caplog.at_level(logging.WARNING, "kshot.runs"):
        kshot.runs.train("many", "a-folder", iterations=0, quiet=True, **QUIET)
    assert "note" not in caplog.text
    with caplog.at_level(logging.WARNING, "kshot.runs"):
        kshot.runs.train("many", "a-folder", iterations=2, quiet=True, **QUIET)
    assert "note: training with way 10 instead of way 30, because split 'train' has no more" in caplog.text


def test_the_default_way_of_a_small_folder_is_five() -> None:
    """Ten classes of five are trained and tested 5-way."""
    run = kshot.runs.train("many", {"name": "a-folder", "classes": 10, "each": 5}, iterations=2, quiet=True, **QUIET)
    assert (run.engine.tasks.spec.way, run.result.shape["way"]) == (5, 5)


@pytest.mark.parametrize(
    ("classes", "each", "way", "said"),
    [
        (
            10,
            6,
            None,
            "all episodes have the same 5 classes, and they are made of 30 examples, enough for 2 that share",
        ),
        (
            20,
            6,
            2,
            "all episodes are of only 5 classes, and they are made of 30 examples, enough for 5 that share none",
        ),
        (60, 6, 2, "they are made of 72 examples, enough for 12 that share none"),
        (200, 6, 2, ""),
    ],
)
def test_a_test_split_that_is_too_small_for_its_interval_is_said(classes: int, each: int, way: Any, said: str) -> None:
    """With the reason, below the score and in the stored result."""
    tasks: Any = {"name": "a-folder", "classes": classes, "each": each, "way": way}
    run = kshot.runs.train("many", tasks, iterations=0, quiet=True, **QUIET)
    assert said in str(run)
    assert ("caution" in str(run)) == ("cautions" in run.to_dict()) == bool(said)


def test_disjoint_episodes_are_not_said_to_share_examples() -> None:
    """Only the number of classes is too small."""
    options = {**QUIET, "evaluate": {"disjoint": True, "baselines": False}}
    run = kshot.runs.train("many", "a-folder", iterations=0, quiet=True, **options)
    assert run.cautions[0].startswith("± says little about other classes and examples: all episodes have the same 5")
    assert "made of" not in run.cautions[0]


def test_a_single_episode_is_said_to_have_no_interval() -> None:
    """In place of a number that is none."""
    options = {**QUIET, "evaluate": {"disjoint": True, "baselines": False}}
    run = kshot.runs.train("many", {"name": "a-folder", "query": 5}, iterations=0, quiet=True, **options)
    assert run.result.episodes == 1
    assert "and a single episode has no interval" in str(run)
