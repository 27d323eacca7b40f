"""Few-shot regression of sine waves with random amplitude and phase (Finn, Abbeel & Levine 2017)."""

from kshot_sinusoid.sinusoid import Sinusoid

__all__ = ["Sinusoid"]
