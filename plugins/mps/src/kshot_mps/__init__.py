"""A backend that computes on the GPU of a Mac."""

from kshot_mps.mps import Mps

__all__ = ["Mps"]
