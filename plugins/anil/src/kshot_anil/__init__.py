"""ANIL, almost no inner loop: MAML in which only the head adapts (Raghu, Raghu, Bengio & Vinyals 2019)."""

from kshot_anil.anil import ANIL

__all__ = ["ANIL"]
