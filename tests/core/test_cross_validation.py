"""Test training and testing on several divisions of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats

import kshot
from kshot import registry
from kshot.cli import main
from kshot.data.folder_tasks import FolderTasks
from kshot.data.splits import rows_of, split_classes
from kshot.errors import OptionError
from kshot.testing import sample_learner, sample_tasks

FEW: dict[str, Any] = {"iterations": 1, "evaluate": {"episodes": 20}, "quiet": True}


def folder(way: int = 2, query: int = 2, seed: int = 0, *, fold: tuple[int, int] | None = None) -> FolderTasks:
    """Make tasks of 15 classes of 4 examples, a fifth of them for the test."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 4)) + np.repeat(np.arange(15), 4)[:, None]).float()
    names = {f"c{i:02d}": [f"c{i:02d}/{j}" for j in range(4)] for i in range(15)}
    splits = rows_of(names, split_classes([*names], (0.6, 0.2, 0.2), 0, fold))
    how: Any = {"input_shape": (4,), "input_range": None, "prepare": torch.as_tensor}
    return FolderTasks(splits, lambda: (x, "rows"), way=way, query=query, seed=seed, **how)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry.default, "_registered", dict(registry.default._registered))
    monkeypatch.chdir(tmp_path)
    kshot.register(sample_learner.NearestMean, name="crossed")
    kshot.register(folder, name="a-folder", group="tasks")
    kshot.register(sample_tasks.classification, name="no-folder", group="tasks")


def test_each_class_is_tested_once_and_the_interval_is_over_the_divisions() -> None:
    """Also of the baselines; every division has its run folder."""
    crossed = kshot.runs.train_splits("crossed", "a-folder", splits=5, **FEW)
    tested = [set(run.engine.tasks.pool("test").names) for run in crossed.runs]
    assert sorted(name for names in tested for name in names) == sorted(
        folder().pool("trainval").names + tuple(tested[0])
    )
    assert all(
        not names & {*run.engine.tasks.pool("train").names} for names, run in zip(tested, crossed.runs, strict=True)
    )
    scores = [run.result.mean for run in crossed.runs]
    score, raw, untrained = crossed.summary()
    low, high = stats.t.interval(0.95, 4, np.mean(scores), stats.sem(scores))
    assert (score["mean"], score["mean_interval"]) == pytest.approx((np.mean(scores), (high - low) / 2))
    assert (raw["baseline"], untrained["baseline"]) == ("nearest mean of raw inputs", "crossed without training")
    gaps = [run.baselines[0].difference.mean for run in crossed.runs]
    assert raw["difference"] == pytest.approx(np.mean(gaps))
    assert raw["difference_interval"] == pytest.approx(stats.t.ppf(0.975, 4) * stats.sem(gaps))
    first = f"{100 * score['mean']:.2f} ± {100 * score['mean_interval']:.2f} % accuracy over 5 splits of the classes"
    assert str(crossed).startswith(first)
    assert [run.folder for run in crossed.runs] == [Path(f"runs/crossed-a-folder-0-split-{i}") for i in range(5)]
    again = kshot.runs.evaluate("runs/crossed-a-folder-0-split-3", quiet=True)
    assert again.result.mean == crossed.runs[3].result.mean


def test_every_test_is_averaged() -> None:
    """A run may have several."""
    tests = [{"way": 2}, {"way": 3}]
    crossed = kshot.runs.train_splits("crossed", "a-folder", splits=2, test=tests, no_run=True, **FEW)
    means = [row["mean"] for row in crossed.summary() if row["baseline"] is None]
    assert means == pytest.approx([np.mean([run.results[i].mean for run in crossed.runs]) for i in (0, 1)])


def test_the_command_trains_on_every_division_and_prints_the_mean() -> None:
    """As text, or as JSON with all runs."""
    few = ["--iterations=1", "--evaluate.episodes=20", "--quiet", "--splits=3"]
    done = CliRunner().invoke(main, ["train", "crossed", "a-folder", *few, "--run=r-{split}"])
    assert done.exit_code == 0, done.output
    assert "over 3 splits of the classes" in done.stdout
    assert all(Path(f"r-{i}/result.json").is_file() for i in range(3))
    done = CliRunner().invoke(main, ["train", "crossed", "a-folder", *few, "--no-run", "--json"])
    content = json.loads(done.stdout)
    assert (len(content["runs"]), content["summary"][0]["splits"]) == (3, 3)


def test_impossible_divisions_are_refused() -> None:
    """Of a data set, fewer than two, and several runs in one folder."""
    with pytest.raises(OptionError, match="got tasks 'no-folder', whose classes are divided once"):
        kshot.runs.train_splits("crossed", "no-folder", splits=2, **FEW)
    with pytest.raises(OptionError, match="got 1, expected at least 2 divisions"):
        kshot.runs.train_splits("crossed", "a-folder", splits=1, **FEW)
    with pytest.raises(OptionError, match=r"expected a path with \{split\} in it"):
        kshot.runs.train_splits("crossed", "a-folder", splits=2, run="one", **FEW)
    for args in (["--splits=1"], ["--splits=2", "--seeds=0,1"], ["--splits=2", "--run=one"]):
        assert CliRunner().invoke(main, ["train", "crossed", "a-folder", *args]).exit_code == 2
