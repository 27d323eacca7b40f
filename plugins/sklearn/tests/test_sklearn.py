"""The classifier by scikit-learn's own checks, and against the learner it is made of."""

from __future__ import annotations

import pickle
import shutil
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


class Doubled(nn.Module):
    """Prototypes of inputs times a parameter; works on [B, n, 2, 2]."""

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
def test_it_passes_scikit_learn_s_checks(estimator: Any, check: Any) -> None:
    """All of them; none is expected to fail."""
    check(estimator)


def test_without_a_model_it_is_the_nearest_centroid() -> None:
    """Against scikit-learn's own; probabilities are the softmax of minus squared distances."""
    digits, labels = load_digits(return_X_y=True)
    digits = digits + np.random.default_rng(0).normal(0, 1, digits.shape)  # a constant pixel makes its centroid warn
    made = FewShotClassifier().fit(digits[:50], labels[:50])
    assert np.array_equal(made.predict(digits), NearestCentroid().fit(digits[:50], labels[:50]).predict(digits))
    small = FewShotClassifier().fit([[0.0], [2.0]], ["no", "yes"])
    assert np.allclose(small.predict_proba([[0.5]]), [[1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))]])
    assert small.classes_.tolist() == ["no", "yes"]


def test_predictions_are_the_learner_s() -> None:
    """Labels of any kind, sorted as scikit-learn has them, and images, not only tables."""
    model = Trained(Doubled(), SPEC)
    made = FewShotClassifier(model).fit(X, Y)
    expected = model.predict({name: X[name == Y] for name in "abc"}, X + 0.1)
    assert np.allclose(made.predict_proba(X + 0.1), expected.probabilities)
    assert made.predict(X + 0.1).tolist() == expected.labels
    assert made.score(X, Y) > 0.9
    assert made.n_features_in_ == 2


def test_it_is_cloned_and_searched_over() -> None:
    """A grid over learners, each adapted to the folds' examples."""
    models = [None, Trained(Doubled(), SPEC)]
    assert clone(FewShotClassifier(models[1])).fit(X, Y).score(X, Y) > 0.9
    search = GridSearchCV(FewShotClassifier(), {"model": [Trained(Doubled(0.0), SPEC), models[1]]}, cv=3)
    search.fit(X, Y)
    assert search.best_params_["model"] is not None
    assert search.best_params_["model"].learner.factor.item() == 2
    assert len(cross_val_score(FewShotClassifier(models[1]), X, Y, cv=3)) == 3


@pytest.mark.parametrize(
    ("examples", "labels", "words"),
    [
        (X[:, :1], Y, "shape"),
        (X, Y[:5], "inconsistent numbers of samples"),
        (X, ["a"] * 12, "only one class, 'a'"),
        (np.full_like(X, np.nan), Y, "NaN"),
    ],
)
def test_bad_input_is_refused(examples: Any, labels: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FewShotClassifier(Trained(Doubled(), SPEC)).fit(examples, labels)


def test_a_learner_of_a_fixed_way_takes_no_other() -> None:
    class Fixed(Doubled):
        needs = Needs()

    with pytest.raises(MisfitError, match="Fixed: got 2 classes in the support, expected 3"):
        FewShotClassifier(Trained(Fixed(), SPEC)).fit(X[Y != "c"], Y[Y != "c"])


def test_a_run_on_disk_is_fitted_pickled_and_guarded(tmp_path: Path) -> None:
    """The pickle has no learner in it; one whose run has changed since is refused, and says so."""
    kshot.register(DoubledOf, name="doubled", group="learners")
    kshot.register(Squares, name="squares", group="tasks")
    engine_of(tmp_path / "run", seed=0)
    made = FewShotClassifier(tmp_path / "run").fit(X, Y)
    before = made.predict_proba(X)
    blob = pickle.dumps(made)
    assert b"torch" not in blob
    assert b"kshot.runs.trained" not in blob
    assert np.array_equal(pickle.loads(blob).predict_proba(X), before)
    shutil.rmtree(tmp_path / "run")
    engine_of(tmp_path / "run", seed=1)
    with pytest.raises(ValueError, match="other parameters than when this classifier was fitted"):
        pickle.loads(blob).predict(X)
    assert not np.allclose(clone(made).fit(X, Y).predict_proba(X), before)


class DoubledOf(Doubled):
    """As the registry builds learners."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(torch.rand(()).item())

    def meta_gradient(self, episodes: Any) -> Any:
        loss: Tensor = (self.factor - 1).square()
        loss.backward()
        return {"loss": loss.detach()}


class Squares(kshot.ClassificationTasks):
    """Blobs of 2 x 2."""

    def __init__(self, way: int = 3, shot: int = 1, query: int = 1, seed: int = 0) -> None:
        pool = kshot.Pool.of(X, np.unique(Y, return_inverse=True)[1])
        super().__init__(dict.fromkeys(("train", "val", "test"), pool), way=way, shot=shot, query=query, seed=seed)


def engine_of(run: Path, seed: int) -> None:
    """A run as the command line leaves it."""
    from click.testing import CliRunner

    from kshot.cli import main

    flags = ["--iterations=2", "--quiet", "--evaluate.episodes=2", f"--run={run}", f"--seed={seed}"]
    done = CliRunner().invoke(main, ["train", "doubled", "squares", *flags])
    assert done.exit_code == 0, done.output
