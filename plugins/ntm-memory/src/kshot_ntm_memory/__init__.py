"""The memory of a neural Turing machine (Graves, Wayne & Danihelka 2014)."""

from kshot_ntm_memory.memory import NTMMemory, NTMState

__all__ = ["NTMMemory", "NTMState"]
