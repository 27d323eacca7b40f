"""Test the paired difference of results, by hand, and that only results of the same episodes are compared."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import nn

from kshot import ClassificationTasks, Engine, Episode, Needs, Pool, Result, Support
from kshot.errors import DataError
from kshot.runs.run import over_classes


def result(accuracy: list[float], **fields: Any) -> Result:
    about = {"kind": "classification", "split": "test", "tasks": {"name": "toy", "options": {"way": (2, 5)}}, **fields}
    return Result({"accuracy": np.array(accuracy), "nll": np.ones(len(accuracy))}, **about)


def test_the_difference_is_paired_by_episode() -> None:
    """By hand: gaps .1 .1 .3 .1, mean .15, s = .1, so 3.182 * .1 / 2 with Student's t of 3 degrees of freedom."""
    difference = result([0.6, 1.0, 0.8, 0.3]).minus(result([0.5, 0.9, 0.5, 0.2]))
    assert difference.mean == pytest.approx(0.15)
    assert difference.interval == pytest.approx(3.182446305 * 0.1 / 2)
    assert difference.episodes == 4
    assert str(difference) == "+15.00 ± 15.91 points of accuracy (4 paired episodes)"


def test_the_other_way_round_only_the_sign_changes() -> None:
    """a - b = -(b - a)."""
    a, b = result([0.6, 1.0, 0.8]), result([0.5, 0.9, 0.5])
    assert b.minus(a).mean == -a.minus(b).mean
    assert b.minus(a).interval == a.minus(b).interval
    assert str(b.minus(a)).startswith("-16.67 ± ")


def test_a_difference_of_other_kinds_is_in_the_units_of_the_score() -> None:
    """Only fractions are printed as points."""
    errors = [Result({"mse": np.array(v)}, kind="regression", split="test") for v in ([1.0, 3.0], [0.5, 1.5])]
    assert str(errors[0].minus(errors[1])) == "+1 ± 6.4 mse (2 paired episodes)"


def test_episodes_without_a_score_are_left_out() -> None:
    """A NaN in either is no pair."""
    difference = result([0.6, math.nan, 0.8]).minus(result([0.5, 0.9, 0.5]))
    assert difference.episodes == 2
    assert difference.mean == pytest.approx(0.2)


def test_one_episode_has_no_interval() -> None:
    """Its spread is unknown; JSON has None for it."""
    difference = result([1.0]).minus(result([0.5]))
    assert math.isnan(difference.interval)
    assert difference.to_dict()["interval"] is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"split": "val"}, "split 'test' and 'val'"),
        ({"tasks_seed": 1}, "tasks_seed 0 and 1"),
        ({"shape": {"way": 20}}, "shape"),
        ({"data": "omniglot-b"}, "data '' and 'omniglot-b'"),
        ({"tasks": {"name": "toy", "options": {"noise": 5.0}}}, "tasks"),
    ],
)
def test_results_of_other_episodes_are_refused(fields: dict[str, Any], named: str) -> None:
    """A difference between unlike episodes would be read as a difference between learners."""
    with pytest.raises(DataError, match=f"results of different episodes: {named}"):
        result([0.5, 0.7]).minus(result([0.5, 0.7], **fields))
    with pytest.raises(DataError, match="episodes 2 and 3"):
        result([0.5, 0.7]).minus(result([0.5, 0.7, 0.7]))


def test_a_result_from_a_file_is_of_the_same_episodes() -> None:
    """JSON turns tuples to lists; that is no difference."""
    a = result([0.5, 0.7], shape={"way": (2, 5)})
    assert a.minus(Result.from_json(a.to_json())).mean == 0


class Says(nn.Module):
    """Takes every query for an example of class ``label``."""

    needs = Needs(variable_way=True)

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def meta_gradient(self, episodes: Episode) -> dict[str, float]:
        return {}

    def adapt(self, support: Support) -> Any:
        row = nn.functional.one_hot(torch.tensor(self.label), support.way or 0).float()
        return lambda x: row.expand(*x.shape[:2], -1)


def test_two_learners_are_compared_on_an_engines_episodes() -> None:
    """The way it is used; here each is right in half of the queries of every episode."""
    pool = Pool.of(np.random.default_rng(0).normal(size=(60, 3)), np.repeat(np.arange(6), 10))
    tasks = ClassificationTasks({"train": pool, "test": pool}, way=2, shot=1, query=3)
    first, second = (Engine(Says(label), tasks) for label in (0, 1))
    difference = first.evaluate(8).minus(second.evaluate(8))
    assert (difference.mean, difference.interval, difference.episodes) == (0.0, 0.0, 8)
    with pytest.raises(DataError, match="split 'test' and 'train'"):
        first.evaluate(8).minus(second.evaluate(8, split="train"))


def test_a_result_prints_what_its_score_means_and_round_trips():
    """The mean and the interval are worked out by hand: t s / sqrt(n), where t = 3.182 for 4 values."""
    r = Result(
        {"accuracy": np.array([0.5, 1.0, 0.75, 0.75]), "curve": np.ones((4, 3))},
        kind="classification",
        split="test",
        shape={"way": 5, "shot": 1},
        normalisation="inductive",
    )
    assert r.mean == 0.75
    assert r.interval == pytest.approx(3.182446305 * np.sqrt(0.125 / 3) / 2)
    assert str(r) == "75.00 ± 32.48 % accuracy (4 episodes, test, 5-way 1-shot, inductive)"
    again = Result.from_json(r.to_json())
    assert again.scores["curve"].shape == (4, 3)
    assert str(again) == str(r)
    with pytest.raises(DataError, match="got text that is not a result"):
        Result.from_json("{}")


def test_an_infinite_score_stays_infinite_in_a_file() -> None:
    """As NaN it would be left out of the mean, and a method that diverges would look better."""
    for scores in (np.array([1.0, math.inf, math.nan]), np.array([-math.inf, 2.0])):
        again = Result.from_json(Result({"loss": scores}, kind="objective", split="test").to_json())
        np.testing.assert_array_equal(again.scores["loss"], scores)


def test_one_of_several_tests_of_a_run_is_read_by_its_number() -> None:
    """Without a number it must be the only one."""
    tests = [Result({"accuracy": np.array([a, a])}, kind="classification", split="test") for a in (0.25, 0.5, 1.0)]
    text = json.dumps({"results": [one.to_dict() for one in tests]})
    assert [Result.from_json(text, test=i).mean for i in range(3)] == [0.25, 0.5, 1.0]
    for wrong in (None, 3, -1):
        with pytest.raises(DataError, match=r"got a run with 3 tests|got test="):
            Result.from_json(text, test=wrong)
    assert Result.from_json(json.dumps({"results": [tests[1].to_dict()]})).mean == 0.5


@pytest.mark.parametrize("option", ["way", "shot", "query", "seed"])
def test_an_option_that_is_given_with_its_default_value_makes_no_other_episodes(option: str) -> None:
    """``shape`` and ``tasks_seed`` record these, whether or not they were given."""

    def of(options: dict[str, Any], **more: Any) -> Result:
        about = {"name": "toy", "options": options}
        return Result({"accuracy": np.array([0.5, 1.0])}, kind="classification", split="test", tasks=about, **more)

    assert of({option: 5}).minus(of({})).mean == 0
    with pytest.raises(DataError, match="different episodes"):
        of({"noise": 5}).minus(of({}))
    with pytest.raises(DataError, match="different episodes"):
        of({}, tasks_seed=1).minus(of({}))


def test_the_classes_of_the_episodes_are_recorded_and_read_back() -> None:
    """With the width of the interval over them; without episodes only the width is written."""
    pool = Pool.of(np.repeat(np.arange(7.0), 4)[:, None], np.repeat(np.arange(7), 4))
    tasks = ClassificationTasks({"train": pool, "test": pool}, way=3, shot=1, query=2)
    measured = Engine(Says(0), tasks, hooks=()).evaluate(episodes=40)
    origins: list[Any] = [tasks.sample("test", [i]).origin for i in range(40)]
    expected = np.concatenate([origin.classes for origin in origins])
    assert measured.classes is not None
    assert np.array_equal(measured.classes, expected)
    again = Result.from_json(measured.to_json())
    assert again.classes is not None
    assert np.array_equal(again.classes, expected)
    varied = attrs.evolve(measured, scores={"accuracy": np.linspace(0, 1, 40)})
    assert varied.class_interval > 0
    assert varied.to_dict(episodes=False)["class_interval"] == varied.class_interval
    assert varied.to_dict(episodes=False)["classes"] is None
    assert math.isnan(result([0.5, 0.6, 0.7]).class_interval)


def test_a_run_says_when_the_classes_are_few() -> None:
    """If the interval over classes is more than half as wide again as that over episodes."""
    classes = np.array([np.random.default_rng(i).permutation(6)[:2] for i in range(50)])
    by_class = result((np.arange(6) / 10)[classes].mean(1).tolist(), classes=classes)
    (line,) = over_classes(by_class)
    assert re.search(r"other classes than these 6, .* by \d+\.\d\d points", line)
    many = np.array([np.random.default_rng(i).permutation(300)[:2] for i in range(50)])
    assert over_classes(result(np.random.default_rng(0).random(50).tolist(), classes=many)) == []
    assert over_classes(result([0.5, 0.7])) == []
