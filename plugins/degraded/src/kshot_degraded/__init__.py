"""A view of classification tasks that degrades a known part of the examples."""

from kshot_degraded.view import Degraded

__all__ = ["Degraded"]
