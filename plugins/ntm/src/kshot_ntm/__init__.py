"""Neural Turing machines (Graves, Wayne & Danihelka 2014)."""

from kshot_ntm.ntm import NTM

__all__ = ["NTM"]
