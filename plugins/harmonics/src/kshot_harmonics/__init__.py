"""Few-shot regression of sums of two sine waves (Lacoste et al. 2018)."""

from kshot_harmonics.harmonics import Harmonics

__all__ = ["Harmonics"]
