"""Sequence tasks of random bits: copying and associative recall (Graves, Wayne & Danihelka 2014)."""

from kshot_copy.copying import Copy
from kshot_copy.recall import AssociativeRecall

__all__ = ["AssociativeRecall", "Copy"]
