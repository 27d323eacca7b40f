"""Mathematics as functions: tensors in, tensors out.

The functions keep no state, choose no device and log nothing. This package imports torch only.
"""

from kshot.functional.attacks import fgsm, pgd
from kshot.functional.conjugate import conjugate_gradient
from kshot.functional.folds import class_folds
from kshot.functional.gradients import log_and_sign
from kshot.functional.gru import gru_cell
from kshot.functional.lstm import lstm_cell
from kshot.functional.metric import (
    class_means,
    class_sums,
    full_precision,
    pairwise_squared_distance,
    prototypical_logits,
)
from kshot.functional.sequence import sequence_errors, sequence_loss
from kshot.functional.span import span_coordinates
from kshot.functional.verification import best_threshold

__all__ = [
    "best_threshold",
    "class_folds",
    "class_means",
    "class_sums",
    "conjugate_gradient",
    "fgsm",
    "full_precision",
    "gru_cell",
    "log_and_sign",
    "lstm_cell",
    "pairwise_squared_distance",
    "pgd",
    "prototypical_logits",
    "sequence_errors",
    "sequence_loss",
    "span_coordinates",
]
