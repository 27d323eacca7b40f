"""Toy tasks: Gaussian blobs and sinusoids."""

from kshot_toy.blobs import blobs
from kshot_toy.sinusoids import Sinusoids, sinusoids

__all__ = ["Sinusoids", "blobs", "sinusoids"]
