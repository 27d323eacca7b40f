"""Tasks in which a known part of the examples is degraded, as a view of any labelled ones."""

from kshot_degraded.view import Degraded

__all__ = ["Degraded"]
