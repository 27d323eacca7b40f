"""Tests of the classifier by scikit-learn's own checks, and against the predictions of its learner."""

from __future__ import annotations

import doctest
import pickle
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn

import kshot
from kshot import Needs, Support, TaskSpec, Trained
from kshot.errors import MisfitError
from kshot.functional import class_means, prototypical_logits
from kshot_sklearn import FewShotClassifier
from kshot_sklearn.classifier import is_raw


class Doubled(nn.Module):
    """Classify by the nearest class mean of inputs [B, n, 2, 2] times a parameter."""

    needs = Needs(variable_way=True)

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def meta_gradient(self, episodes: Any) -> Any:
        raise AssertionError("nothing is trained here")

    def adapt(self, support: Support) -> Any:
        means = class_means(self.factor * support.x.flatten(2), support.y, support.way or 0)
        return lambda x: prototypical_logits(self.factor * x.flatten(2), means)


SPEC = TaskSpec(kind="classification", input_shape=(2, 2), way=3, shot=1, query=1)
rng = np.random.default_rng(0)
Y = np.array(["c", "a", "b"] * 4)
X = (rng.normal(size=(12, 2, 2)) + 3 * np.array([2, 0, 1] * 4)[:, None, None]).astype(np.float32)


@parametrize_with_checks([FewShotClassifier()])
def test_the_classifier_passes_scikit_learn_s_checks(estimator: Any, check: Any) -> None:
    """It passes all of them, without any that is expected to fail."""
    check(estimator)


def test_without_a_model_the_classifier_is_the_nearest_centroid() -> None:
    """Predictions are those of scikit-learn; probabilities are the softmax of minus squared distances."""
    digits, labels = load_digits(return_X_y=True)
    digits = digits + np.random.default_rng(0).normal(
        0, 1, digits.shape
    )  # without noise, constant pixels make NearestCentroid warn
    classifier = FewShotClassifier().fit(digits[:50], labels[:50])
    assert np.array_equal(classifier.predict(digits), NearestCentroid().fit(digits[:50], labels[:50]).predict(digits))
    small = FewShotClassifier().fit([[0.0], [2.0]], ["no", "yes"])
    # In float64; 0.3 is another number in float32.
    expected = [[1 / (1 + np.exp(-2.8)), 1 / (1 + np.exp(2.8))]]
    assert np.allclose(small.predict_proba([[0.3]]), expected, rtol=1e-12, atol=0)
    assert small.classes_.tolist() == ["no", "yes"]


def test_predictions_are_the_learner_s() -> None:
    """Labels may be of any kind and are sorted, as in scikit-learn; inputs may be images and not only tables."""
    model = Trained(Doubled(), SPEC)
    classifier = FewShotClassifier(model).fit(X, Y)
    expected = model.predict({name: X[name == Y] for name in "abc"}, X + 0.1)
    assert np.allclose(classifier.predict_proba(X + 0.1), expected.probabilities)
    assert classifier.predict(X + 0.1).tolist() == expected.labels
    assert classifier.score(X, Y) > 0.9
    assert classifier.n_features_in_ == 2


def test_the_classifier_can_be_cloned_and_used_in_a_search() -> None:
    """A grid search compares learners, each of which adapts to the examples of a fold."""
    models = [None, Trained(Doubled(), SPEC)]
    assert clone(FewShotClassifier(models[1])).fit(X, Y).score(X, Y) > 0.9
    search = GridSearchCV(FewShotClassifier(), {"model": [Trained(Doubled(0.0), SPEC), models[1]]}, cv=3)
    search.fit(X, Y)
    assert search.best_params_["model"] is not None
    assert search.best_params_["model"].learner.factor.item() == 2
    assert len(cross_val_score(FewShotClassifier(models[1]), X, Y, cv=3)) == 3


@pytest.mark.parametrize(
    ("examples", "labels", "message"),
    [
        (X[:, :1], Y, "shape"),
        (X, Y[:5], "inconsistent numbers of samples"),
        (X, ["a"] * 12, "only one class, 'a', expected at least two"),
        (np.full_like(X, np.nan), Y, "NaN"),
    ],
)
def test_bad_input_is_refused(examples: Any, labels: Any, message: str) -> None:
    """Errors are ValueErrors, as scikit-learn's conventions require."""
    with pytest.raises(ValueError, match=message):
        FewShotClassifier(Trained(Doubled(), SPEC)).fit(examples, labels)


def test_a_learner_of_a_fixed_way_refuses_other_ways() -> None:
    """Its predictions for another number of classes would have no meaning."""

    class Fixed(Doubled):
        needs = Needs()

    with pytest.raises(MisfitError, match="Fixed: got 2 classes in the support, expected 3"):
        FewShotClassifier(Trained(Fixed(), SPEC)).fit(X[Y != "c"], Y[Y != "c"])


def test_a_classifier_of_a_run_can_be_pickled_and_notices_a_changed_run(tmp_path: Path) -> None:
    """The pickle does not contain the learner, and a run that has changed since ``fit`` is refused."""
    kshot.register(DoubledOf, name="doubled", group="learners")
    kshot.register(Squares, name="squares", group="tasks")
    engine_of(tmp_path / "run", seed=0)
    classifier = FewShotClassifier(tmp_path / "run").fit(X, Y)
    before = classifier.predict_proba(X)
    blob = pickle.dumps(classifier)
    assert b"torch" not in blob
    assert b"kshot.runs.trained" not in blob
    assert np.array_equal(pickle.loads(blob).predict_proba(X), before)
    shutil.rmtree(tmp_path / "run")
    engine_of(tmp_path / "run", seed=1)
    with pytest.raises(ValueError, match=r"other parameters from the run .* than when this classifier was fitted"):
        pickle.loads(blob).predict(X)
    assert not np.allclose(clone(classifier).fit(X, Y).predict_proba(X), before)


class DoubledOf(Doubled):
    """Build the learner from a spec, as the registry does, with a random factor."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(torch.rand(()).item())

    def meta_gradient(self, episodes: Any) -> Any:
        loss: Tensor = (self.factor - 1).square()
        loss.backward()
        return {"loss": loss.detach()}


class Squares(kshot.ClassificationTasks):
    """Sample tasks of three classes of 2 x 2 inputs."""

    def __init__(self, way: int = 3, shot: int = 1, query: int = 1, seed: int = 0) -> None:
        pool = kshot.Pool.of(X, np.unique(Y, return_inverse=True)[1])
        super().__init__(dict.fromkeys(("train", "val", "test"), pool), way=way, shot=shot, query=query, seed=seed)


def engine_of(run: Path, seed: int) -> None:
    """Train a learner by the command line into the folder ``run``."""
    from click.testing import CliRunner

    from kshot.cli import main

    flags = ["--iterations=2", "--quiet", "--evaluate.episodes=2", f"--run={run}", f"--seed={seed}"]
    done = CliRunner().invoke(main, ["train", "doubled", "squares", *flags])
    assert done.exit_code == 0, done.output


class Column:
    """Represent a column of a table, such as a pandas Series, whose indices need not begin with 0."""

    ndim = 1

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Any:
        return iter(self.values)


@pytest.mark.parametrize(
    ("examples", "raw"),
    [
        (["a.png", "b.png"], True),
        ((Path("a.png"),), True),
        (np.array(["a.png"]), True),
        (np.array([Path("a.png")], object), True),
        (Column(["a.png"]), True),
        (Column([1.0]), False),
        ("a.png", False),
        ([], False),
        (X, False),
        (torch.from_numpy(X), False),
        (X.tolist(), False),
    ],
)
def test_paths_are_recognised_in_any_one_dimensional_container(examples: Any, raw: bool) -> None:
    """A column of a table of paths is prepared as a list of the same paths is."""
    assert is_raw(examples) is raw


@pytest.mark.parametrize("model", [None, Trained(Doubled(), SPEC)])
def test_a_fitted_classifier_does_not_change_with_the_users_array(model: Any) -> None:
    """The examples of ``fit`` are copied."""
    examples = X.astype(np.float64 if model is None else np.float32).copy()
    classifier = FewShotClassifier(model).fit(examples, Y)
    before = classifier.predict_proba(X)
    examples[:] = 0
    assert np.array_equal(classifier.predict_proba(X), before)


def test_the_examples_in_docstrings_run() -> None:
    """A wrong example is worse than none."""
    result = doctest.testmod(sys.modules["kshot_sklearn.classifier"])
    assert (result.failed, result.attempted > 0) == (0, True)


def test_a_run_made_in_python_is_a_classifier(tmp_path: Path) -> None:
    """An engine writes what the classifier needs, also for a network that is named by an import path."""
    pytest.importorskip("kshot_toy")
    pytest.importorskip("kshot_protonet")
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "classifiernets.py").write_text(
        "import kshot\nfrom torch import nn\n\n"
        "def tiny(spec: kshot.TaskSpec) -> nn.Module:\n    return nn.Linear(spec.input_shape[0], 4)\n"
    )
    encoder = {"name": "protonet", "encoder": "classifiernets:tiny"}
    few = {"iterations": 2, "evaluate": {"episodes": 2}, "quiet": True}
    run = kshot.runs.train(encoder, "toy", run=tmp_path / "run", import_from=folder, **few)
    examples = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says what is imported
        classifier = FewShotClassifier(tmp_path / "run", import_from=folder).fit(examples, list("aabbcc"))
    expected = FewShotClassifier(run.trained()).fit(examples, list("aabbcc"))
    assert np.array_equal(classifier.predict_proba(examples), expected.predict_proba(examples))
    sys.modules.pop("classifiernets")


def test_values_that_are_no_usual_numbers_are_refused() -> None:
    """Dates would be taken as nanoseconds, and the distances of very large numbers are NaN."""
    X, y = np.arange(8.0).reshape(4, 2), [0, 1, 0, 1]
    with pytest.raises(ValueError, match="got dates or times"):
        FewShotClassifier().fit(X.astype("M8[s]"), y)
    with pytest.raises(ValueError, match=r"got predictions that are NaN for \d of 4 examples"):
        FewShotClassifier().fit(X * 1e300, y).predict(X * 1e300)
    with pytest.raises(ValueError, match="got a tensor that is no array"):
        FewShotClassifier().fit(torch.zeros(4, 2, device="meta"), y)


def test_a_tensor_with_a_graph_is_taken_as_its_numbers() -> None:
    """The result of a network is one."""
    X, y = torch.arange(8.0).reshape(4, 2), [0, 1, 0, 1]
    plain = FewShotClassifier().fit(X.numpy(), y).predict_proba(X.numpy())
    np.testing.assert_array_equal(FewShotClassifier().fit(X.requires_grad_() * 1, y).predict_proba(X * 1), plain)
