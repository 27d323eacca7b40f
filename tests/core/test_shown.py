"""What users see of values in a console and in a notebook: short, true, and without loading anything."""

from __future__ import annotations

import sys
from typing import Any

import attrs
import numpy as np
import pytest
import torch

import kshot
from kshot import Needs, Pool, Result, Support, TaskSpec, Training
from kshot.errors import DataError, Unavailable
from kshot.testing import sample_learner, sample_tasks

TASKS = sample_tasks.classification(way=3, shot=2)
EPISODE = TASKS.sample("test", [0, 1])
RESULT = Result({"accuracy": np.array([0.5, 1.0]), "curve": np.ones((2, 3))}, kind="classification", split="test")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (EPISODE, "<Episode: 2 tasks, support [2, 6, 6], query [2, 9, 6]>"),
        (EPISODE.support, "<Support: 3-way, x [2, 6, 6], y [2, 6]>"),
        (EPISODE.query, "<Examples: x [2, 9, 6], y [2, 9]>"),
        (EPISODE.origin, "<Origin: test, seed 0, episodes 0, 1>"),
        (RESULT, "<Result: 75.00 ± 317.66 % accuracy (2 episodes, test)>"),
        (Pool.of(np.zeros((4, 2)), [0, 1, 1, 0]), "<Pool: 2 classes, 4 examples [2] of float32>"),
        (Needs(variable_way=True), "Needs(variable_way=True)"),
        (Training(lr=0.1, tasks={"way": 20}), "Training(lr=0.1, tasks={'way': 20})"),
        (TaskSpec(kind="regression", input_shape=(1,), target_shape=(1,), query=4),
         "TaskSpec(kind='regression', input_shape=(1,), target_shape=(1,), query=4)"),
        (kshot.Trained(sample_learner.NearestMean(TASKS.spec), TASKS.spec, backend=kshot.Cpu()),
         "<Trained: NearestMean for inputs [6], on cpu>"),
        (kshot.info("cpu"), f"<PluginInfo: backend 'cpu' (kshot {kshot.__version__}), 4 options>"),
    ],
)  # fmt: skip
def test_a_value_is_one_short_line(value: Any, text: str) -> None:
    """As it is typed here."""
    assert repr(value) == text


def test_every_value_is_short() -> None:
    """Also tasks, plugins, the registry and a backend, whose texts depend on what is installed."""
    values = [TASKS, kshot.plugins(), kshot.registry.default, kshot.Cpu(), kshot.plugins()[0], *EPISODE.support.x[:0]]
    for value in values:
        assert len(repr(value)) < 200, repr(value)
        assert " object at 0x" not in repr(value)


@pytest.mark.parametrize("cls", [Needs, Training])
def test_what_is_shown_of_a_plain_value_makes_it_again(cls: Any) -> None:
    """The fields that differ from their defaults are enough."""
    value = cls(**{"exact_gradient": True} if cls is Needs else {"warmup": 3})
    assert eval(repr(value), {cls.__name__: cls}) == value


def pictures(C: int) -> kshot.Episode:
    """Return an episode with two classes of pictures."""
    x = torch.rand(1, 4, C, 9, 9)
    support = Support.of(x[0], [0, 0, 1, 1])
    return kshot.Episode(support, kshot.Examples(x[:, :2], torch.tensor([[1, 0]])))


@pytest.mark.parametrize("C", [1, 3])
def test_an_episode_of_pictures_is_a_grid(C: int) -> None:
    """A row for each class, with each of its pictures."""
    pytest.importorskip("PIL")
    shown = pictures(C)._repr_html_()
    assert shown.count("<img ") == 6
    assert shown.count("<tr>") == 3


def test_other_episodes_are_their_shapes() -> None:
    """Text of the data is escaped."""
    shown = EPISODE._repr_html_()
    assert "<img " not in shown
    assert "&lt;Support: 3-way" in shown
    regression = sample_tasks.Lines().sample("train", [0])
    assert "&lt;Examples:" in regression._repr_html_()


def test_names_are_escaped_in_html() -> None:
    """A class may have any name."""
    pytest.importorskip("PIL")
    episode = pictures(1)
    origin = kshot.Origin("test", (0,), 0, classes=np.array([[0, 1]]), names=("<b>", "ok"))
    assert "<td>&lt;b&gt;</td>" in attrs.evolve(episode, origin=origin)._repr_html_()


def test_plugins_are_a_table_in_a_notebook() -> None:
    """With a row for each."""
    plugins = kshot.plugins()
    assert plugins._repr_html_().count("<tr>") == len(plugins) + 1
    assert isinstance(plugins, tuple)


def test_a_result_becomes_a_frame() -> None:
    """A row for each episode; curves have a column for each step."""
    pandas = pytest.importorskip("pandas")
    frame = RESULT.to_frame()
    assert list(frame.columns) == ["accuracy", "curve.0", "curve.1", "curve.2"]
    assert frame["accuracy"].tolist() == [0.5, 1.0]
    assert isinstance(frame, pandas.DataFrame)


def test_a_result_without_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so does a plot without matplotlib."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(Unavailable, match="needs pandas, which is not installed: pip install pandas"):
        RESULT.to_frame()
    with pytest.raises(Unavailable, match="needs matplotlib, which is not installed"):
        RESULT.plot()


def test_a_result_is_drawn() -> None:
    """The headline as a histogram, a curve as a line with its interval."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axes = RESULT.plot()
    assert axes.get_xlabel() == "accuracy"
    assert len(axes.patches) > 0
    assert len(RESULT.plot("curve").lines[0].get_xdata()) == 3
    with pytest.raises(DataError, match="got the score 'loss', expected one of accuracy, curve"):
        RESULT.plot("loss")
    pyplot.close("all")


def test_a_result_in_a_notebook_has_its_scores() -> None:
    """Means and intervals."""
    shown = RESULT._repr_html_()
    assert "75.00 ± 317.66 % accuracy" in shown
    assert "<td>accuracy</td><td>0.75</td>" in shown
