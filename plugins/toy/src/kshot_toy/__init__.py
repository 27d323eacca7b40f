"""Toy tasks that need no download: few-shot classification of Gaussian blobs."""

from kshot_toy.blobs import blobs

__all__ = ["blobs"]
