"""Siamese networks (Hadsell, Chopra & LeCun 2006; Koch, Zemel & Salakhutdinov 2015), and verification."""

from kshot_siamese.siamese import Siamese

__all__ = ["Siamese"]
