"""Sine waves of random amplitude and phase, by the protocol of Finn, Abbeel & Levine 2017."""

from kshot_sinusoid.sinusoid import Sinusoid

__all__ = ["Sinusoid"]
