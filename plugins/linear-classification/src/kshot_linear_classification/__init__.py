"""Few-shot classification by random hyperplanes whose normals share a subspace, and two classifiers to compare with."""

from kshot_linear_classification.hyperplanes import LinearClassification
from kshot_linear_classification.references import bayes, logistic_regression

__all__ = ["LinearClassification", "bayes", "logistic_regression"]
