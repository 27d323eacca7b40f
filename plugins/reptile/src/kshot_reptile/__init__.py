"""Reptile (Nichol, Achiam & Schulman 2018), serial and batched."""

from kshot_reptile.reptile import Reptile

__all__ = ["Reptile"]
