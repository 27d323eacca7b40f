"""Sequence tasks of random bits: copying, repeated copying and associative recall (Graves, Wayne & Danihelka 2014)."""

from kshot_copy.copying import Copy
from kshot_copy.recall import AssociativeRecall
from kshot_copy.repeats import RepeatCopy

__all__ = ["AssociativeRecall", "Copy", "RepeatCopy"]
