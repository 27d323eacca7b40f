"""MAML++ (Antoniou, Edwards & Storkey 2018)."""

from kshot_mamlpp.mamlpp import MAMLPP

__all__ = ["MAMLPP"]
