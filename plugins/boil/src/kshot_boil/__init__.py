"""BOIL, body only update in inner loop: MAML in which all but the head adapts (Oh, Yoo, Kim & Yun 2020)."""

from kshot_boil.boil import BOIL

__all__ = ["BOIL"]
