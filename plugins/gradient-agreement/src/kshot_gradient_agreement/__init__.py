"""Gradient agreement (Eshratifar, Eigen & Pedram 2018) around any learner whose meta-gradient is a mean over tasks."""

from kshot_gradient_agreement.agreement import GradientAgreement, agreement
from kshot_gradient_agreement.outliers import Outliers

__all__ = ["GradientAgreement", "Outliers", "agreement"]
