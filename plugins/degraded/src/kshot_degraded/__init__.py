"""A view of classification tasks that degrades a share of the examples and records which."""

from kshot_degraded.view import Degraded

__all__ = ["Degraded"]
