"""Task-agnostic meta-learning (Jamal & Qi 2018), by entropy or by an inequality of the losses of tasks."""

from kshot_taml.measures import (
    atkinson,
    generalised_entropy,
    gini,
    inequality,
    prediction_entropy,
    theil,
    variance_of_logs,
)
from kshot_taml.taml import TAML

__all__ = [
    "TAML",
    "atkinson",
    "generalised_entropy",
    "gini",
    "inequality",
    "prediction_entropy",
    "theil",
    "variance_of_logs",
]
