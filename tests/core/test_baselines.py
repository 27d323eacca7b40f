"""Test the simple methods that are tested beside a learner that was trained on a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import registry
from kshot.data.folder_tasks import FolderTasks
from kshot.data.splits import rows_of, split_classes
from kshot.runs import baselines
from kshot.runs.baselines import NearestMean
from kshot.testing import sample_learner, sample_tasks

FEW: dict[str, Any] = {"iterations": 2, "evaluate": {"episodes": 30}, "quiet": True}


class Fails(sample_learner.NearestMean):
    """A learner whose training makes all embeddings the same."""

    def meta_gradient(self, episodes: Any) -> Any:
        metrics = super().meta_gradient(episodes)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
        return metrics


def folder(way: int | None = None, *, query: int = 2, scale: float = 1.0, seed: int = 0) -> FolderTasks:
    """Make tasks of 12 classes of 6 examples, which are around the mean of their class."""
    chance = np.random.default_rng(0)
    means = np.repeat(chance.normal(size=(12, 4)), 6, 0)
    x = torch.from_numpy(scale * (means + 0.3 * chance.normal(size=means.shape))).float()
    classes = {f"c{i}": [f"c{i}/{j}" for j in range(6)] for i in range(12)}
    return FolderTasks(
        rows_of(classes, split_classes([*classes], (0.5, 0.0, 0.5))),
        lambda: (x, "rows"),
        input_shape=(4,),
        input_range=None,
        prepare=torch.as_tensor,
        way=way,
        query=query,
        seed=seed,
    )


class Pretrained(nn.Linear):
    """An encoder that leaves out one of the four numbers of an input."""

    def __init__(self, spec: Any) -> None:
        super().__init__(4, 3, bias=False)
        with torch.no_grad():
            self.weight.copy_(torch.eye(4)[:3])


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry.default, "_registered", dict(registry.default._registered))
    monkeypatch.setattr(baselines, "SUGGESTED", {"a-folder": "pretrained-of-this-test"})
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    kshot.register(Fails, name="fails")
    kshot.register(folder, name="a-folder", group="tasks")
    kshot.register(sample_tasks.classification, name="no-folder", group="tasks")


def encoder_there() -> None:
    """Make the pretrained encoder available."""
    kshot.register(Pretrained, name="pretrained-of-this-test", group="encoders")


def test_a_training_that_destroys_the_encoder_is_worse_than_all_baselines() -> None:
    """Raw inputs, the learner as it was initialised, and the pretrained encoder, on the same episodes, are stored."""
    encoder_there()
    run = kshot.runs.train("fails", "a-folder", run="runs/it", **FEW)
    names = [baseline.name for baseline in run.baselines]
    assert names == ["nearest mean of raw inputs", "fails without training", "nearest mean of pretrained-of-this-test"]
    for baseline in run.baselines:
        assert baseline.difference.mean < -0.1
        assert baseline.difference.episodes == baseline.result.episodes == 30
        assert np.array_equal(baseline.result.classes, run.result.classes)
        assert f"  {baseline.name}: {100 * baseline.result.mean:.2f} %; the learner: -" in str(run)
    stored = json.loads(Path("runs/it/result.json").read_text())["baselines"]
    assert [(one["name"], one["test"], len(one["result"]["scores"]["accuracy"])) for one in stored] == [
        (name, "", 30) for name in names
    ]
    assert stored[0]["difference"]["mean"] == run.baselines[0].difference.mean
    assert kshot.runs.evaluate("runs/it", quiet=True).baselines == ()


def test_the_nearest_mean_is_that_of_the_inputs() -> None:
    """As of a learner that was made of this class, on the same tasks."""
    run = kshot.runs.train("fails", "a-folder", no_run=True, **FEW)
    tasks = folder()
    expected = kshot.Engine(NearestMean(), tasks, hooks=()).evaluate(30)
    assert run.baselines[0].result.scores["accuracy"].tolist() == expected.scores["accuracy"].tolist()
    assert len(run.baselines) == 2  # the pretrained encoder is not installed


def test_a_learner_that_was_not_trained_is_not_its_own_baseline() -> None:
    """The other baselines are tested."""
    encoder_there()
    run = kshot.runs.train("fails", "a-folder", no_run=True, **{**FEW, "iterations": 0})
    assert len(run.baselines) == 2
    assert "without training" not in str(run)


def test_baselines_can_be_switched_off_and_are_of_folders_only() -> None:
    """A data set has published results to compare with."""
    off = {**FEW, "evaluate": {"episodes": 30, "baselines": False}}
    assert kshot.runs.train("fails", "a-folder", no_run=True, **off).baselines == ()
    assert kshot.runs.train("fails", "no-folder", no_run=True, **FEW).baselines == ()


def test_large_folders_are_not_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """That would take longer than the training."""
    encoder_there()
    monkeypatch.setattr(baselines, "MOST", 71)
    assert len(kshot.runs.train("fails", "a-folder", no_run=True, **FEW).baselines) == 2


def test_a_learner_on_embeddings_is_compared_with_raw_inputs_but_not_with_its_own_encoder() -> None:
    """The raw inputs are those below the embeddings, on the same episodes."""
    encoder_there()
    of = {"name": "embedded", "of": {"name": "a-folder"}, "encoder": "pretrained-of-this-test"}
    run = kshot.runs.train("fails", of, no_run=True, **FEW)
    assert [baseline.name for baseline in run.baselines] == ["nearest mean of raw inputs", "fails without training"]
    plain = kshot.runs.train("fails", "a-folder", no_run=True, **FEW).baselines[0].result
    assert run.baselines[0].result.scores["accuracy"].tolist() == plain.scores["accuracy"].tolist()


def test_every_test_has_its_baselines_without_an_attack() -> None:
    """And on disjoint episodes, if the learner is tested on these."""
    options: Any = {**FEW, "evaluate": {"episodes": 30, "disjoint": True}, "test": [{"way": 2}, {"way": 3}]}
    run = kshot.runs.train("fails", "a-folder", no_run=True, **options)
    assert [(b.result.shape["way"], b.result.disjoint) for b in run.baselines] == [
        (2, True),
        (2, True),
        (3, True),
        (3, True),
    ]
    assert [b.result.episodes for b in run.baselines] == [r.episodes for r in run.results for _ in range(2)]
