"""A trained learner in use: predictions as its logits have them, distances, and where "the same" ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kshot
from kshot import ClassificationTasks, Needs, Pool, Support
from kshot.errors import DataError, MisfitError
from kshot.functional import class_means, prototypical_logits
from kshot.runs.trained import Trained, best_threshold
from kshot.spec import TaskSpec
from kshot.testing import sample_learner, sample_tasks


class Nearest(nn.Module):
    """Prototypes of a fixed linear embedding, which counts how often it is called."""

    needs = Needs(variable_way=True)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.scale = nn.Parameter(torch.tensor([2.0, 1.0]))
        self.drop = nn.Dropout(0.5)

    def meta_gradient(self, episodes: Any) -> Any:
        raise AssertionError("nothing is trained here")

    def embed(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.drop(x * self.scale)

    def adapt(self, support: Support) -> Any:
        p = class_means(self.embed(support.x), support.y, support.way or 0)
        return lambda x: prototypical_logits(self.embed(x), p)


SPEC = TaskSpec(kind="classification", input_shape=(2,), way=3, shot=1, query=1)
SUPPORT = {"red": [[0.0, 0.0]], "grün": [[1.0, 0.0], [1.0, 2.0]], "a/b": [[4.0, 4.0]]}


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    """By hand: prototypes (0,0), (2,1), (8,4) in an embedding twice as wide; dropout is off, and comes back on."""
    learner = Nearest()
    learner.train()
    made = Trained(learner, SPEC).predict(SUPPORT, [[1.0, 1.0], [3.0, 4.0]])
    expected = torch.softmax(-torch.tensor([[5.0, 0.0, 45.0], [52.0, 25.0, 4.0]], dtype=torch.float64), -1)
    assert made.names == ("red", "grün", "a/b")
    assert made.labels == ["grün", "a/b"]
    assert made.probabilities.dtype == np.float64
    assert np.allclose(made.probabilities, expected, atol=1e-6)
    assert np.allclose(made.probabilities.sum(1), 1)
    assert learner.training
    assert learner.scale.grad is None


def test_many_queries_are_predicted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a thousand files need no more memory than a few; the predictions are the same."""
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    whole = Trained(Nearest(), SPEC).predict(SUPPORT, x)
    monkeypatch.setattr("kshot.runs.trained.BUDGET", 4)
    learner = Nearest()
    calls = learner.calls
    pieces = Trained(learner, SPEC).predict(SUPPORT, x)
    assert len(calls) == 1 + 4
    assert np.array_equal(whole.probabilities, pieces.probabilities)


def test_a_transductive_learner_sees_its_queries_together() -> None:
    class Transductive(Nearest):
        needs = Needs(variable_way=True, queries="at_adapt")

        def adapt(self, support: Support) -> Any:
            assert support.query_x is not None
            assert support.query_x.shape == (1, 3, 2)
            return super().adapt(support)

    made = Trained(Transductive(), SPEC).predict(SUPPORT, np.zeros((3, 2)))
    assert made.labels == ["red"] * 3


def test_queries_that_affect_each_other_are_predicted_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are: in pieces, the predictions would depend on how they are cut."""

    class Joint(Nearest):
        needs = Needs(variable_way=True, queries="joint")

        def embed(self, x: Tensor) -> Tensor:
            return super().embed(x - x.mean(1, keepdim=True))

    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    whole = Trained(Joint(), SPEC).predict(SUPPORT, x)
    monkeypatch.setattr("kshot.runs.trained.BUDGET", 4)
    assert np.array_equal(Trained(Joint(), SPEC).predict(SUPPORT, x).probabilities, whole.probabilities)


def test_what_does_not_fit_is_said() -> None:
    model = Trained(Nearest(), SPEC)
    with pytest.raises(DataError, match=r"got 1 classes in the support \(red\), expected at least two"):
        model.predict({"red": [[0.0, 0.0]]}, [[0.0, 0.0]])
    with pytest.raises(DataError, match=r"shape \[1, 3\], expected \[n, 2\]"):
        model.predict(SUPPORT, [[0.0, 0.0, 0.0]])
    with pytest.raises(DataError, match="got 1 and 2 examples, expected pairs"):
        model.distances([[0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]])
    with pytest.raises(MisfitError, match="regression tasks"):
        Trained(Nearest(), attrs.evolve(SPEC, kind="regression", way=None, target_shape=(1,)))
    with pytest.raises(MisfitError, match="got no tasks to take pairs from"):
        model.threshold()

    class Fixed(Nearest):
        needs = Needs()

    with pytest.raises(MisfitError, match="Fixed: got 2 classes in the support, expected 3"):
        Trained(Fixed(), SPEC).predict({"a": [[0.0, 0.0]], "b": [[1.0, 1.0]]}, [[0.0, 0.0]])

    class Blind(nn.Module):
        needs = Needs()

    with pytest.raises(MisfitError, match="got a Blind, which has no embedding"):
        Trained(Blind(), SPEC).embed([[0.0, 0.0]])


def test_prepare_makes_inputs_of_what_comes() -> None:
    """A path, a word, whatever the tasks understand; here the number of letters."""
    model = Trained(Nearest(), SPEC, prepare=lambda raw: torch.tensor([[float(len(w)), 0.0] for w in raw]))
    assert model.predict({"short": ["a"], "long": ["abcdef"]}, ["bb", "abcde"]).labels == ["short", "long"]
    assert np.array_equal(model.embed(["abc"]), [[6.0, 0.0]])
    assert np.array_equal(model.distances(["a", "abc"], ["abc", "abc"]), [4.0, 0.0])


def test_a_learner_s_own_distance_is_used() -> None:
    class Taxi(Nearest):
        def distance(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).abs().sum(-1) - 1

    model = Trained(Taxi(), SPEC)
    assert np.array_equal(model.distances([[0.0, 0.0], [1.0, 1.0]], [[1.0, 2.0], [1.0, 1.0]]), [3.0, -1.0])


def test_threshold_of_hand_made_distances() -> None:
    """Two of three genuine pairs are nearer than any imposter: (2/3 + 1) / 2, half way to the next distance."""
    made = best_threshold(np.array([1.0, 2.0, 9.0]), np.array([4.0, 5.0, 10.0, 11.0]), "val")
    assert made.value == 3.0
    assert made.accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert made.pairs == (3, 4)
    with pytest.raises(DataError, match="got 0 pairs of the same class and 1 of different classes"):
        best_threshold(np.array([]), np.array([1.0]), "val")


def test_threshold_equals_a_search_through_all() -> None:
    rng = np.random.default_rng(0)
    near, far = rng.gamma(2, 1, 40).round(1), rng.gamma(4, 1, 60).round(1)
    made = best_threshold(near, far, "val")
    best = max(((near <= t).mean() + (far > t).mean()) / 2 for t in np.arange(0, 20, 0.01))
    assert made.accuracy == pytest.approx(best)
    assert ((near <= made.value).mean() + (far > made.value).mean()) / 2 == pytest.approx(best)


def blobs(classes: int, each: int = 4) -> Pool:
    """Classes far apart, on a line."""
    rng = np.random.default_rng(1)
    centres = 10 * np.arange(classes)[:, None, None]
    x = (centres + rng.normal(size=(classes, each, 2))).reshape(-1, 2).astype(np.float32)
    return Pool.of(x, np.repeat(np.arange(classes), each))


def test_threshold_is_chosen_on_pairs_of_a_split() -> None:
    """Blobs far apart are told apart without error, by pairs that are within episodes and never of one with itself."""
    tasks = ClassificationTasks({s: blobs(12) for s in ("train", "val", "test")}, way=3, shot=1, query=2)
    made = Trained(Nearest(), tasks.spec, tasks=tasks).threshold(episodes=5)
    assert made.pairs == (5 * 12 * 6, 5 * 66 * 16)
    assert made.accuracy == 1
    assert 5 < made.value < 20
    assert kshot.Trained is Trained


def test_threshold_needs_no_split_as_large_as_the_one_trained_on() -> None:
    """A folder of 18 classes has 6 to validate on."""
    tasks = ClassificationTasks({"train": blobs(18), "val": blobs(6, each=2)}, way=18, shot=1, query=3)
    assert Trained(Nearest(), tasks.spec, tasks=tasks).threshold(episodes=5).pairs == (5 * 6, 5 * 15 * 4)
    for pool in (blobs(1), blobs(6, each=1)):
        tasks = ClassificationTasks({"train": blobs(18), "val": pool}, way=18, shot=1, query=3)
        with pytest.raises(DataError, match="expected at least 2 classes with 2 examples each to choose a threshold"):
            Trained(Nearest(), tasks.spec, tasks=tasks).threshold()


def test_inputs_are_those_of_the_training_or_refused() -> None:
    """Tasks of uint8 are trained on 0 to 1, so pictures of 0 to 255 are not what the learner knows."""
    spec = TaskSpec(kind="classification", input_shape=(2,), input_range=(0.0, 1.0), way=2, shot=1, query=1)
    model = Trained(Nearest(), spec)
    assert torch.equal(model.inputs(np.array([[0, 255]], np.uint8)), torch.tensor([[0.0, 1.0]]))
    for wrong, message in (
        ([[0.0, 255.0]], r"inputs: got values in \[0, 255\], expected them in \[0.0, 1.0\]"),
        ([[np.nan, 0.5]], "got 1 of 2 values that are NaN"),
        ([["a", "b"]], "got the file .a., expected inputs as numbers"),
    ):
        with pytest.raises(DataError, match=message):
            model.inputs(wrong)


@pytest.mark.parametrize("raw", [["a.png", "b.png"], [Path("a.png")], "a.png", [b"a.png"]])
def test_files_of_tasks_that_can_not_prepare_them_are_refused(raw):
    """``kshot predict``, ``embed`` and ``verify`` give paths, whatever the tasks of the run are."""
    spec = sample_tasks.classification().spec
    model = kshot.Trained(sample_learner.NearestMean(spec), spec)
    with pytest.raises(DataError, match=r"^inputs: got the file '.*', expected inputs as numbers: the tasks of this"):
        model.inputs(raw)


def test_no_examples_are_refused() -> None:
    """The mean of no examples is NaN, and some networks fail on an empty batch."""
    spec = sample_tasks.classification().spec
    model, one = kshot.Trained(sample_learner.NearestMean(spec), spec), torch.zeros(1, 6)
    for support, queries in (({"a": one, "b": one}, one[:0]), ({"a": one, "b": one[:0]}, one)):
        with pytest.raises(DataError, match=r"^inputs: got no examples, expected at least one"):
            model.predict(support, queries)


def test_predictions_that_are_nan_are_refused() -> None:
    """Distances of very large inputs overflow: the difference of two infinite ones is no number."""
    spec = sample_tasks.classification().spec
    model, one = kshot.Trained(sample_learner.NearestMean(spec), spec), torch.ones(1, 6)
    with pytest.raises(
        DataError, match=r"^predict: got predictions that are NaN for 1 of 2 examples, expected numbers"
    ):
        model.predict({"a": one, "b": -one}, torch.cat([one, 1e38 * one]))
