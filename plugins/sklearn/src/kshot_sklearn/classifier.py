"""A few labelled examples in, a classifier out, by scikit-learn's conventions.

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


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classify by a trained learner that adapts to the examples ``fit`` is given; nothing is trained.

    Inputs are whatever the learner was trained on, as floats [n, *input], or, where ``model`` is a run, raw examples
    as its tasks prepare them: paths, or pictures as uint8 [n, h, w].

    A pickle holds the examples and the name of the run, not the learner: it is read again, without executing anything
    in it, when the classifier is next used, and refused if it has changed.

    Args:
        model: the folder of a run of ``kshot train``; or a ``kshot.Trained``, for a learner made in Python, which is
            pickled as Python pickles it; or None for the nearest class mean of the inputs themselves, Snell et al.'s
            (2017) classifier without a net: the baseline that a learner has to beat.

    Attributes:
        classes_: the labels [N], sorted.
        n_features_in_: F, the length of the inputs' second axis, where they are arrays.

    Raises:
        ValueError: at ``fit`` and ``predict``: malformed data, fewer than two classes, inputs of another shape.
        kshot.errors.KshotError: the run or its files can't be used.
    """

    def __init__(self, model: str | PathLike[str] | Trained | None = None) -> None:
        self.model = model

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Take examples ``X`` [n, *input] with labels ``y`` [n] as the support."""
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
            raise ValueError(f"y has only one class, {only!r}; expected examples of at least two classes")
        self.X_, self.y_ = X, labels.astype(np.int64)
        self._trained = self._load()
        if self._trained is not None:
            self._trained.check_way(len(self.classes_))
        self.checkpoint_ = None if self._trained is None else self._trained.digest
        self._support = self._inputs(X)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities [n, N] of ``classes_``; rows sum to 1."""
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        y, way = torch.from_numpy(self.y_)[None], len(self.classes_)
        trained = self._again()
        if trained is None:
            means = class_means(self._support.flatten(1)[None], y, way)
            logits: Tensor = prototypical_logits(self._inputs(X).flatten(1)[None], means)[0]
        else:
            logits = trained.logits(Support(x=self._support[None], y=y, way=way), self._inputs(X)).double()
        made: NDArray[np.float64] = torch.softmax(logits, -1).numpy()
        return made

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable of ``classes_`` for each example [n]."""
        best = self.predict_proba(X).argmax(1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def _checked(self, X: Any, reset: bool) -> Any:
        """Arrays as scikit-learn checks them; paths and the like are left to the learner's tasks."""
        if self.model is not None and is_raw(X):
            return list(X)
        if self.model is not None and np.asarray(X).dtype == np.uint8:
            dtype: Any = None  # pictures: the tasks know what 255 is
        else:
            dtype = np.float32 if self.model is not None else np.float64
        # The examples of fit are kept, so they are copied: later changes of the user's array must not reach them.
        return validate_data(self, X, reset=reset, allow_nd=True, dtype=dtype, copy=reset)

    def _inputs(self, X: Any) -> Tensor:
        if self._trained is not None:
            return self._trained.inputs(X)
        return torch.from_numpy(np.array(X, dtype=np.float64))

    def _load(self) -> Trained | None:
        if self.model is None or isinstance(self.model, Trained):
            return self.model
        return Trained.of_run(Path(self.model))

    def _again(self) -> Trained | None:
        """The learner; after unpickling or cloning, as it is on disk now."""
        if not hasattr(self, "_support"):
            self._trained = self._load()
            if self._trained is not None and self._trained.digest != self.checkpoint_:
                del self._trained
                raise ValueError(
                    f"the run {self.model} has other parameters than when this classifier was fitted; fit it again"
                )
            self._support = self._inputs(self.X_)
        return self._trained

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ("_trained", "_support")}


def is_raw(X: Any) -> bool:
    """Return whether ``X`` is a list, array or column of paths, for the tasks to prepare, and not of numbers."""
    if isinstance(X, str | bytes | Tensor) or not hasattr(X, "__len__") or len(X) == 0:
        return False
    if hasattr(X, "ndim") and X.ndim != 1:  # iterating over a table of pandas gives the names of its columns
        return False
    return isinstance(next(iter(X), None), str | PathLike)
