"""Use trained learners as classifiers of scikit-learn."""

from kshot_sklearn.classifier import FewShotClassifier

__all__ = ["FewShotClassifier"]
