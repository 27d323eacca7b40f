"""A trained learner as a classifier that follows the conventions of scikit-learn.

Letters: n examples, F features, N classes.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from kshot import Support, Trained
from kshot.functional import class_means, prototypical_logits
from kshot.runs.classifier import Classifier, fitted
from kshot.runs.fitting import Component, preparation_for
from kshot.runs.predictions import probabilities_of


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classify by a trained learner that adapts to the examples given to ``fit``; nothing is trained.

    Inputs are what the learner was trained on, as floats [n, *input]. If ``model`` is a run, they may also be raw
    examples that its tasks can prepare: paths, or pictures as uint8 [n, h, w].

    A pickle contains the examples and the name of the run, but not the learner. The learner is read again when the
    unpickled classifier is first used, which executes no code of the file, and is refused if it has changed.

    Args:
        model: a run folder, made by ``kshot train`` or in Python; or a ``kshot.Trained``, for a learner that was built
            in Python (it is pickled in the usual way); or None for the nearest class mean of the inputs themselves.
            That is the classifier of Snell et al. (2017) without a network, the baseline that a learner has to exceed.
        encoder: an encoder plugin, by its name or ``{"name": ..., **options}``, instead of a ``model``: inputs are
            paths, or what its plugin of files prepares, and are classified by the nearest mean of their embeddings at
            unit length, with calibrated probabilities, see ``kshot.runs.fitting.fit``.
        tasks: the plugin that reads the files for ``encoder``; by default ``imagefolder``.
        import_from: a folder with the network that the run names by an import path, if it is not installed.

    Attributes:
        classes_: the labels [N], sorted.
        classifier_: with ``encoder``, the ``kshot.runs.classifier.Classifier``, which also estimates the accuracy.
        n_features_in_: F, the length of the second axis of the inputs, if they are arrays.

    Raises:
        ValueError: in ``fit`` and ``predict``: the data are malformed, there are fewer than two classes, or the inputs
            have another shape than the learner was trained on.
        kshot.errors.KshotError: the run or its files can't be used.

    Example:
        >>> classifier = FewShotClassifier().fit([[0.0], [1.0], [9.0]], ["low", "low", "high"])
        >>> classifier.predict([[2.0], [8.0]]).tolist()
        ['low', 'high']
    """

    def __init__(
        self,
        model: str | PathLike[str] | Trained | None = None,
        *,
        encoder: Component | None = None,
        tasks: Component | None = None,
        import_from: str | PathLike[str] | None = None,
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.tasks = tasks
        self.import_from = import_from

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Store examples ``X`` [n, *input] with labels ``y`` [n] as the support, and return the classifier itself."""
        if y is None:
            raise ValueError("FewShotClassifier requires y to be passed, but the target y is None")
        X = self._checked(X, reset=True)
        y = column_or_1d(y, warn=True)
        assert_all_finite(y)
        check_consistent_length(X, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            (only,) = self.classes_.tolist()
            raise ValueError(f"FewShotClassifier: got only one class, {only!r}, expected at least two classes in y")
        self.y_ = labels.astype(np.int64)
        if self.encoder is not None:
            self.classifier_ = self._embedded(X)
            return self
        self.X_ = X
        self._trained = self._load()
        if self._trained is not None:
            self._trained.check_way(len(self.classes_))
        self.checkpoint_ = None if self._trained is None else self._trained.digest
        self._support = self._inputs(X)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Predict the probabilities of ``classes_`` for inputs ``X`` [n, *input]: [n, N], and each row sums to 1."""
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        if self.encoder is not None:
            return np.asarray(self.classifier_.predict(X).probabilities)
        y, way = torch.from_numpy(self.y_)[None], len(self.classes_)
        trained = self._again()
        if trained is None:
            # The baseline: minus squared distances to the class means of the inputs, flattened.
            means = class_means(self._support.flatten(1)[None], y, way)
            logits: Tensor = prototypical_logits(self._inputs(X).flatten(1)[None], means)[0]
        else:
            logits = trained.logits(Support(x=self._support[None], y=y, way=way), self._inputs(X)).double()
        return probabilities_of(logits)

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the most probable of ``classes_`` for each of the inputs ``X`` [n, *input]: [n]."""
        best = self.predict_proba(X).argmax(1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def _embedded(self, X: Any) -> Classifier:
        """Return the classifier of embeddings of the examples."""
        if self.model is not None:
            raise ValueError("FewShotClassifier: got model and encoder, expected at most one of them")
        assert self.encoder is not None
        preparation = preparation_for(self.encoder, self.tasks)
        return fitted(preparation(X), torch.from_numpy(self.y_), list(map(str, self.classes_)), None, preparation)

    def _checked(self, X: Any, reset: bool) -> Any:
        """Check ``X`` as scikit-learn does if it contains numbers; the tasks check paths and the like themselves."""
        learned = self.model is not None or self.encoder is not None
        if learned and is_raw(X):
            return list(X)
        if isinstance(X, Tensor):
            X = as_array(X)
        kind = np.asarray(X).dtype
        if kind.kind in "mM":  # scikit-learn would take nanoseconds as numbers
            raise ValueError(f"FewShotClassifier: got dates or times ({kind}), expected numbers; convert them first")
        if learned and kind == np.uint8:
            dtype: Any = None  # pictures stay uint8, because the tasks define how they become floats
        else:
            dtype = np.float32 if learned else np.float64
        # The examples of fit are kept, so they are copied: later changes of the user's array must not reach them.
        return validate_data(self, X, reset=reset, allow_nd=True, dtype=dtype, copy=reset)

    def _inputs(self, X: Any) -> Tensor:
        """Convert checked ``X`` to inputs of the learner, or to float64 for the baseline."""
        if self._trained is not None:
            return self._trained.inputs(X)
        return torch.from_numpy(np.array(X, dtype=np.float64))

    def _load(self) -> Trained | None:
        """Read the learner from its run, if ``model`` is one."""
        if self.model is None or isinstance(self.model, Trained):
            return self.model
        import_from = None if self.import_from is None else Path(self.import_from)
        return Trained.of_run(Path(self.model), import_from=import_from)

    def _again(self) -> Trained | None:
        """Return the learner. After unpickling, read it again first.

        Raises:
            ValueError: the run has other parameters than at ``fit``.
        """
        if not hasattr(self, "_support"):
            self._trained = self._load()
            if self._trained is not None and self._trained.digest != self.checkpoint_:
                del self._trained
                raise ValueError(
                    f"FewShotClassifier: got other parameters from the run {self.model} than when this classifier was "
                    "fitted, expected the same; fit it again"
                )
            self._support = self._inputs(self.X_)
        return self._trained

    def __getstate__(self) -> dict[str, Any]:
        # The learner and its inputs are left out, and read again by ``_again``.
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ("_trained", "_support")}


def as_array(X: Tensor) -> NDArray[Any]:
    """Return a tensor as an array, without its graph; raise ValueError if numpy has no such array."""
    try:
        array: NDArray[Any] = X.detach().to_dense().cpu().resolve_neg().numpy()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"FewShotClassifier: got a tensor that is no array ({error}), expected numbers") from error
    return array


def is_raw(X: Any) -> bool:
    """Return whether ``X`` is a list, array or column of paths, for the tasks to prepare, and not of numbers."""
    if isinstance(X, str | bytes | Tensor) or not hasattr(X, "__len__") or len(X) == 0:
        return False
    if hasattr(X, "ndim") and X.ndim != 1:  # iterating over a table of pandas gives the names of its columns
        return False
    return isinstance(next(iter(X), None), str | PathLike)
