"""Sequences of bits to copy and to recall by association (Graves, Wayne & Danihelka 2014)."""

from kshot_copy.copying import Copy
from kshot_copy.recall import AssociativeRecall

__all__ = ["AssociativeRecall", "Copy"]
