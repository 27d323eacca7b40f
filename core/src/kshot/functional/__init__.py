"""Mathematics as functions: tensors in, tensors out; no state, no device, no logging. Imports torch only."""

from kshot.functional.lstm import lstm_cell
from kshot.functional.metric import (
    class_means,
    full_precision,
    pairwise_squared_distance,
    prototypical_logits,
)
from kshot.functional.sequence import sequence_errors, sequence_loss

__all__ = [
    "class_means",
    "full_precision",
    "lstm_cell",
    "pairwise_squared_distance",
    "prototypical_logits",
    "sequence_errors",
    "sequence_loss",
]
